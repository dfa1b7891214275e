"""A run of the LDM that begins from another one: what it takes, what it says, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands.test_commands import contents, flags, runs  # noqa: F401 (a fixture)
from tests.tiny import USERS, tiny, tiny_denoiser
from train import check, ldm
from train.base.errors import UserError
from train.data.split import SIDES, read_split
from train.runs import model_folder
from train.runs.checkpoint import load_latest, read_checkpoint
from train.stages.beginning import open_beginning


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory) -> Path:  # noqa: F811
    """What `runs` has, in data/, v/ and l/, but without user ID2, and with a new one, whose name is stored in NFD."""
    folder = tmp_path_factory.mktemp("others")
    for name in ("data", "v", "l"):
        shutil.copytree(runs / name, folder / name)
    (folder / "data/ID2").rename(folder / "data/IDe\u0301")
    return folder


def line(place: Path, out: str, *more: str, model: str = "l/final_model") -> list[str]:
    vae, begin = ["--vae_path", str(place / "v/final_model")], ["--init_from", str(place / model)]
    return flags(place, out, *vae, *begin, "--num_steps", "1", *more)


def averaged(place: Path, model: str) -> dict[str, torch.Tensor]:
    parts = {"unet.": "unet", "user_encoder.": "condition_encoder"}
    return {
        prefix + name: tensor
        for prefix, part in parts.items()
        for name, tensor in model_folder.load(place / model / part).state_dict().items()
    }


def sides_of(path: Path) -> dict[str, str]:
    _, sides, _ = read_split(path)
    return {name: side for side in SIDES for name in sides[side]}


def test_known_users_keep_their_rows_by_name_and_others_are_new(place, capsys):
    ldm.main(line(place, "new"))
    model = place / "l/final_model"
    said = capsys.readouterr()
    assert f"LDM: begun from {model}: 2 users keep what was learned, ID\u00e9 is new, ID2 left out\n" in said.out
    first = read_checkpoint(place / "new/checkpoints/step_00000000")
    before, fresh = averaged(place, "l/final_model"), tiny_denoiser(tiny()).state_dict()
    assert first.state["optimizer"]["state"] == {}
    assert first.state["ema"]["updates"] == 0
    for name, value in first.state["model"].items():
        assert torch.equal(first.state["ema"]["model"][name], value)
        if name != "user_encoder.embedding.weight":
            assert torch.equal(value, before[name]), name
            continue
        users = json.loads((place / "new/final_model/users.json").read_text())["users"]
        assert users == ["ID1", "ID10", "ID\u00e9"]
        assert torch.equal(value[:2], before[name][[0, 2]])  # ID1, ID2, ID10
        assert not (value[2] == before[name]).all(dim=1).any()
        assert value[2].std() == pytest.approx(float(fresh[name].std()), rel=0.5)
    sides, known = sides_of(place / "new/split.json"), sides_of(place / "l/split.json")
    assert {name: side for name, side in sides.items() if "ID1" in name} == {
        name: side for name, side in known.items() if "ID1" in name
    }


def test_a_checkpoint_begins_a_run_as_its_final_model_does(place):
    vae, last = model_folder.load(place / "v/final_model"), load_latest(place / "l/checkpoints")
    found = [
        open_beginning(tiny(f"ldm_training.init_from={model}", f"ldm_training.output_dir={place}/none"), vae)
        for model in (place / "l/final_model", last.path)
    ]
    assert found[0].users == found[1].users == list(USERS)
    one, other = (beginning.denoiser.state_dict() for beginning in found)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_that_has_begun_does_not_load_it_again(place, capsys):
    shutil.copytree(place / "l", place / "moved")
    words = line(place, "resumed", "--num_steps", "2", "--save_interval", "1", model="moved/final_model")
    ldm.main(words)
    ended = load_latest(place / "resumed/checkpoints")
    shutil.rmtree(ended.path)
    shutil.rmtree(place / "moved")
    capsys.readouterr()
    assert check.main(words) == 0
    ldm.main(words)
    said = capsys.readouterr().err
    assert f"{place}/resumed: the run there has begun, and goes on without loading {place}/moved/final_model" in said
    assert "going on after step 1 of 2" in said
    again = load_latest(place / "resumed/checkpoints")
    assert again.step == ended.step == 2
    for part in ("model", "ema"):
        one, other = ((state[part].get("model", state[part])) for state in (ended.state, again.state))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    ldm.main(words[: words.index("--init_from")] + words[words.index("--init_from") + 2 :])


def other_vae(place: Path) -> list[str]:
    other = model_folder.load(place / "v/final_model")
    other.decoder.conv_out.bias.data += 0.1
    model_folder.save(other, place / "other")
    return ["--vae_path", str(place / "other")]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (other_vae, "its UNet knows the latents of another VAE; give its own, {model}/vae, as --vae_path"),
        (["--vae_path", "{place}/none"], "there is no VAE here; train one (python -m train.vae) or give its folder as "
         "--vae_path (to begin from {model} takes its VAE, {model}/vae)"),
        (["--set", "unet.channels=[8, 8]"], "is another model (unet.channels is (8, 16) there, (8, 8) here)"),
        (["--set", "user_encoder.tokens_per_user=2"], "user_encoder.tokens_per_user is 1 there, 2 here"),
        (["--set", "schedule.prediction=noise"], "schedule.prediction is 'velocity' there, 'noise' here"),
        (["--output_dir", "{place}/l"], "is of the run in {place}/l; a run that begins from it needs another out"),
        (["--init_from", "{place}/l"], "{place}/l: there is no trained LDM here (did you mean {model}?)"),
        (["--init_from", "{place}/v/final_model"], "{place}/v/final_model: there is no trained LDM here"),
        (["--init_from", ""], "--init_from: needs a value, not an empty one"),
        (["--set", "data.recordings_per_user=2"], "was made with data.recordings_per_user None, not 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_from_is_refused_in_a_sentence(place, capsys, more, sentence):
    names = {"place": place, "model": place / "l/final_model"}
    more = more(place) if callable(more) else [word.format(**names) for word in more]
    words = line(place, "refused", *more)
    with pytest.raises(UserError) as refused:
        ldm.main(words)
    assert sentence.format(**names) in str(refused.value)
    assert "\n" not in str(refused.value)
    if "" not in more:  # of such a flag no command says more than this
        capsys.readouterr()
        assert check.main(words) == 1
        assert str(refused.value) in capsys.readouterr().out
    assert not (place / "refused").exists()


def test_check_says_what_a_new_run_begins_from(place, capsys):
    before = contents(place)
    assert check.main(line(place, "checked")) == 0
    assert "2 users keep what was learned, ID\u00e9 is new, ID2 left out" in capsys.readouterr().out
    assert contents(place) == before
