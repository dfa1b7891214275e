"""The model card: the hub reads its head, and what people write into it stays."""

from huggingface_hub import ModelCard

from tests.tiny import tiny, tiny_images
from train.data.split import make_split
from train.runs.card import CARD, NOT_JUDGED, TAGS, facts, with_block, write_card, write_verdict


def test_a_block_takes_its_own_place_and_leaves_the_rest():
    text = with_block(with_block("by hand\n", "one", "1"), "two", "2")
    assert text.startswith("by hand\n\n")
    assert with_block(text, "one", "new\nlines") == text.replace("\n1\n", "\nnew\nlines\n")
    assert with_block(text, "one", "1") == text


def test_a_block_that_has_lost_its_end_takes_nothing_with_it():
    text = with_block("above\n", "one", "1").replace("<!-- end of one -->", "below")
    assert {"above", "1", "2", "below"} <= set(with_block(text, "one", "2").splitlines())


def test_the_hub_reads_the_head_and_edits_by_hand_stay(tmp_path):
    config, data = tiny(), tiny_images()
    split = make_split(data, config.data)
    for stage in ("vae", "ldm"):
        old, new = tmp_path / stage, tmp_path / f"{stage}-new"
        old.mkdir(), new.mkdir()
        write_card(old, old, stage, config, data, split)
        card = ModelCard.load(old / CARD)
        assert card.data.library_name == "diffusers"
        assert card.data.tags == list(TAGS[stage])
        assert (NOT_JUDGED in card.text) == (stage == "ldm")
        for name, fact in facts(stage, config, data, split).items():
            assert f"| {name} | {fact} |" in card.text
        text = (old / CARD).read_text().replace("# license: fill in, such as cc-by-4.0", "license: mit")
        (old / CARD).write_text(text.replace("fill in.", "walkers."))
        write_verdict(old, ["helps: yes"])
        write_card(new, old, stage, config, data, split)
        again = ModelCard.load(new / CARD)
        assert again.data.license == "mit"
        assert "walkers." in again.text
        assert "helps: yes" in (old / CARD).read_text()
        assert "helps: yes" not in again.text or stage == "vae"  # other weights are not judged yet


def test_a_verdict_needs_a_card(tmp_path):
    write_verdict(tmp_path, ["helps"])
    assert list(tmp_path.iterdir()) == []
