"""Laws of collecting what is judged: every image has the right user, and bad input its sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny, tiny_vae
from train.base.errors import UserError
from train.data.dataset import load_images
from train.data.split import load_split, make_split, save_split
from train.judge import material as judged
from train.judge.material import collect
from train.runs.final_model import save_users, split_path

USERS, RECORDINGS, EACH = ("ID1", "ID2", "ID10"), 3, 2
CPU = torch.device("cpu")


def draw(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(path)


def config(folder: Path):
    pattern = r"data.recording_pattern=^(rec\d+)_"
    return tiny(f"data.dir={folder / 'data'}", pattern, "data.recordings_per_user=1")


@pytest.fixture
def here(tmp_path) -> Path:
    """Data in `data`, a model's users and split in `model`, and images that it generated in `made`.

    A picture's grey level is 10 times its user's number plus that of its recording; of generated ones, plus 9.
    """
    for number, user in enumerate(USERS, start=1):
        for recording in range(1, RECORDINGS + 1):
            for i in range(EACH):
                draw(tmp_path / f"data/{user}/rec{recording}_{i}.png", 10 * number + recording)
        for i in range(4):
            draw(tmp_path / f"made/{user}/generated_{i}.png", 10 * number + 9)
    (tmp_path / "model").mkdir()
    train(tmp_path)
    return tmp_path


def train(folder: Path) -> None:
    settings = config(folder).data
    data = load_images(settings)
    save_users(data.user_names, folder / "model")
    save_split(split_path(folder / "model"), make_split(data, settings), data, settings)


def collected(folder: Path, test_dir: str | None = None) -> judged.Material:
    settings = config(folder)
    other = folder / test_dir if test_dir else None
    return collect(folder / "model", settings, folder / "made", other, tiny_vae(settings), CPU)


def refused(folder: Path, test_dir: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        collected(folder, test_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def levels(images) -> torch.Tensor:
    return images.images[:, 0, 0, 0].long()


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_every_image_has_its_user_and_its_recording(here):
    found = collected(here)
    assert found.user_names == list(USERS)
    for images, recordings, names in (
        (found.training, found.training_recordings, found.training_files),
        (found.held_out.images, found.held_out.recordings, None),
    ):
        assert torch.equal(levels(images) // 10 - 1, images.users)
        pairs = set(zip(levels(images).tolist(), recordings.tolist(), strict=True))
        assert len(pairs) == len(recordings.unique()) == len(levels(images).unique())
        for name, level in zip(names or [], levels(images).tolist(), strict=bool(names)):
            assert name.startswith(f"{USERS[level // 10 - 1]}/rec{level % 10}_")
    assert len(found.training) == 3 * EACH
    assert len(found.held_out.images) == 3 * 2 * EACH
    assert not set(levels(found.training).tolist()) & set(levels(found.held_out.images).tolist())
    assert torch.equal(levels(found.generated), 10 * found.generated.users + 19)
    assert [name.split("/")[0] for name in found.generated_files] == [USERS[u] for u in found.generated.users.tolist()]
    assert found.other_conditions is None
    assert list(found.tests) == ["held_out"]


def test_reconstructions_are_of_the_images_in_the_same_order(here):
    settings = config(here)
    found = collected(here)
    again = judged.reconstructed(tiny_vae(settings), found.training, CPU)
    assert torch.equal(found.reconstructed.images, again.images)
    assert torch.equal(found.reconstructed.users, found.training.users)
    assert torch.equal(found.held_out_reconstructed.users, found.held_out.images.users[found.held_out_shown])
    assert len(found.held_out_shown) == len(found.held_out.images)


def test_of_many_held_out_images_some_are_reconstructed(here, monkeypatch):
    monkeypatch.setattr(judged, "MOST_RECONSTRUCTED", 5)
    found = collected(here)
    assert len(found.held_out_shown.unique()) == len(found.held_out_reconstructed) == 5
    assert torch.equal(found.held_out_reconstructed.users, found.held_out.images.users[found.held_out_shown])
    assert len(found.reconstructed) == len(found.training)


def test_the_judges_split_is_the_one_that_was_trained_with(here):
    settings = config(here)
    split = load_split(split_path(here / "model"), load_images(settings.data), settings.data)
    assert len(collected(here).training) == len(split.train) + len(split.validation)


def test_some_users_may_have_generated_images_and_others_none(here):
    remove(here / "made/ID2")
    found = collected(here)
    assert found.generated.users.unique().tolist() == [0, 2]
    assert torch.equal(levels(found.generated), 10 * found.generated.users + 19)


def test_a_test_folder_may_hold_some_of_the_users(here):
    for recording in (1, 2):
        draw(here / f"other/ID10/rec{recording}_0.png", 35)
        draw(here / f"other/ID10/rec{recording}_1.png", 35)
    found = collected(here, "other")
    assert found.other_conditions.images.users.tolist() == [2] * 4
    assert found.other_conditions.recordings.tolist() == [0, 0, 1, 1]
    assert list(found.tests) == ["held_out", "test_dir"]


# ---- what does not suffice


def test_no_generated_image_at_all(here):
    remove(here / "made")
    assert f"{here}/made: no such folder" in refused(here)
    (here / "made").mkdir()
    assert f"{here}/made" in refused(here)


def test_an_unknown_user_among_the_generated_ones(here):
    draw(here / "made/ID3/0.png", 1)
    said = refused(here)
    assert said.startswith(f"{here}/made: the folder ID3 is no user of this model (did you mean ID")
    assert said.endswith("it knows ID1, ID2, ID10")


@pytest.mark.parametrize(
    ("name", "hint"), [("id1", " (did you mean ID1?)"), ("ID-10", " (did you mean ID10?)"), ("Zoe", "")]
)
def test_an_unknown_user_in_the_test_folder(here, name, hint):
    draw(here / f"other/{name}/rec1_0.png", 1)
    draw(here / "other/ID2/rec1_0.png", 1)
    assert refused(here, "other") == (
        f"{here}/other: the folder {name} is no user of this model{hint}; it knows ID1, ID2, ID10"
    )


def test_a_test_folder_without_images_or_recordings(here):
    assert f"{here}/other: no such folder" in refused(here, "other")
    draw(here / "other/ID2/walk.png", 1)
    assert "finds no recording in this file's name" in refused(here, "other")


def test_a_test_folder_of_what_classifiers_are_trained_on(here):
    said = refused(here, "data")
    assert said.startswith(f"test_dir {here}/data: 6 of 18 images in it are ")
    assert said.endswith("give recordings that nothing was trained on")


def test_a_test_folder_may_share_a_blank_picture_with_the_training_images(here, monkeypatch):
    for i in range(20):
        draw(here / f"other/ID1/rec1_{i}.png", 200)
    draw(here / "other/ID1/rec2_0.png", 19)  # as the generated ones
    assert len(collected(here, "other").other_conditions.images) == 21
    monkeypatch.setattr(judged, "MOST_KNOWN", 0.04)
    assert ": 1 of 21 images in it are" in refused(here, "other")


def test_a_user_with_a_single_recording(here, capsys):
    for path in (here / "data/ID2").glob("rec[23]*"):
        path.unlink()
    train(here)
    assert refused(here) == (
        f"{here}/data: nothing of ID2 is held out, since there is one recording only; add a second one and train "
        "again, or train without them"
    )


def test_one_user_in_all(here):
    for user in ("ID2", "ID10"):
        remove(here / "data" / user)
    train(here)
    said = refused(here)
    assert said == f"{here}/model: knows a single user, ID1; a classifier needs two to tell apart"


def test_other_users_than_those_that_were_trained(here):
    draw(here / "data/ID11/rec1_0.png", 1)
    assert f"{here}/data: does not hold the users" in refused(here)


def test_a_folder_that_is_no_model(here):
    remove(here / "model")
    assert "there is no trained LDM here" in refused(here)
