"""A folder of generated images is named after what decides them, and after nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.schedule import make_schedule
from tests.tiny import tiny, tiny_denoiser, tiny_vae
from train.base.errors import UserError
from train.base.files import read_json
from train.config.sections import DataConfig, GenerationConfig
from train.runs.final_model import TrainedLDM, load_users, save_users
from train.runs.generated import (
    claim_folder,
    default_folder,
    folder_to_judge,
    image_files,
    image_paths,
    layout,
    overview,
    settings_of,
)

SAMPLING = GenerationConfig(steps=4, guidance_interval=(0.1, 5.0), batch_size=4)
MODEL = Path("runs/ldm/final_model")


@pytest.fixture
def trained() -> TrainedLDM:
    config = tiny()
    return TrainedLDM(tiny_vae(config), tiny_denoiser(config), make_schedule(config.schedule), ["ID1", "ID2", "ID10"])


def folder_of(sampling, seed, trained) -> Path:
    return default_folder(MODEL, settings_of(sampling, seed, trained))


def test_the_batch_size_changes_neither_settings_nor_folder(trained):
    other = replace(SAMPLING, batch_size=1)
    assert settings_of(other, 0, trained) == settings_of(SAMPLING, 0, trained)
    assert folder_of(other, 0, trained) == folder_of(SAMPLING, 0, trained)


@pytest.mark.parametrize(
    "change", [{"sampler": "ddim"}, {"steps": 5}, {"spacing": "leading"}, {"eta": 0.5}, {"guidance": 3.0},
               {"guidance_interval": None}],
)  # fmt: skip
def test_what_changes_images_changes_settings_and_folder(trained, change):
    sampling = replace(SAMPLING, **({"sampler": "ddim"} if "eta" in change else {}))
    other = replace(sampling, **change)
    assert other != sampling
    assert settings_of(other, 0, trained) != settings_of(sampling, 0, trained)
    assert folder_of(other, 0, trained) != folder_of(sampling, 0, trained)


def test_a_users_images_are_found_however_accents_are_stored(tmp_path):
    """In a folder that another system has copied, and by names that an earlier version saved."""
    nfc, nfd = "\u00e9", "e\u0301"
    (tmp_path / nfd).mkdir()
    (tmp_path / nfd / "generated_000.png").touch()
    assert image_paths(tmp_path, [nfc], [(0, 0)])[0, 0].is_file()
    assert len(image_files(tmp_path, nfc)) == 1
    save_users([nfd, "b"], tmp_path)
    assert load_users(tmp_path) == [nfc, "b"]


def test_other_seeds_and_other_weights_have_folders_of_their_own(trained):
    folders = {folder_of(SAMPLING, 0, trained), folder_of(SAMPLING, 1, trained)}
    with torch.no_grad():
        trained.vae.decoder.conv_out.bias += 1e-6
    assert len({*folders, folder_of(SAMPLING, 0, trained)}) == 3
    assert all(folder.parent == MODEL.parent / "generated" for folder in folders)


def other_scale(trained: TrainedLDM) -> TrainedLDM:
    trained.vae.config = replace(trained.vae.config, scaling_factor=0.7)
    return trained


def other_heads(trained: TrainedLDM) -> TrainedLDM:
    """Weights of the same shapes mean another network."""
    trained.denoiser.unet.config = replace(trained.denoiser.unet.config, num_heads=4)
    return trained


def other_schedule(**changes):
    return lambda trained: replace(trained, schedule=make_schedule(replace(trained.schedule.config, **changes)))


@pytest.mark.parametrize(
    "change",
    [other_scale, other_heads, other_schedule(beta_end=0.02), other_schedule(kind="linear"),
     other_schedule(prediction="x0"), lambda trained: replace(trained, users=["ID2", "ID1", "ID10"])],
    ids=["scale", "heads", "betas", "kind", "prediction", "users"],
)  # fmt: skip
def test_how_the_same_weights_are_used_decides_images_too(tmp_path, trained, change):
    before, real = settings_of(SAMPLING, 0, trained), tmp_path / "data"
    claim_folder(real, tmp_path / "images", before)
    (tmp_path / "images/ID1").mkdir()
    (tmp_path / "images/ID1/generated_000.png").touch()
    after = settings_of(SAMPLING, 0, change(trained))
    assert default_folder(MODEL, after) != default_folder(MODEL, before)
    with pytest.raises(UserError, match="holds images of other"):
        claim_folder(real, tmp_path / "images", after)
    with pytest.raises(UserError, match="holds images that another model made"):
        folder_to_judge(MODEL, after, tmp_path / "images", real, ["ID1"])
    assert folder_to_judge(MODEL, before, tmp_path / "images", real, ["ID1"])[0] == tmp_path / "images"


def test_a_folder_goes_on_with_its_own_settings_only(tmp_path, trained):
    settings, other = settings_of(SAMPLING, 0, trained), settings_of(SAMPLING, 1, trained)
    for _ in range(2):
        claim_folder(tmp_path / "data", tmp_path / "images", settings)
    assert read_json(tmp_path / "images/settings.json") == settings
    with pytest.raises(UserError, match="holds images of other seed; give another"):
        claim_folder(tmp_path / "data", tmp_path / "images", other)
    with pytest.raises(UserError, match="is not an empty folder, nor one of generated images"):
        claim_folder(tmp_path / "data", tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_any_folder_of_images_by_user_can_be_judged(tmp_path):
    """Where its report belongs: beside images of this model, and else beside the model."""
    images, model = tmp_path / "theirs", tmp_path / "ldm/final_model"
    (images / "ID1").mkdir(parents=True)
    (images / "ID1/a photo.JPG").touch()
    settings = {"weights": "abc"}

    def place() -> Path:
        return folder_to_judge(model, settings, images, tmp_path / "data", ["ID1", "ID2"])[1]

    beside_the_model = tmp_path / "ldm/evaluations/theirs"
    assert place() == beside_the_model
    for written, where in (({"steps": 30}, beside_the_model), (settings, images)):
        (images / "settings.json").write_text(json.dumps(written))
        assert place() == where
    (images / "settings.json").write_text(json.dumps({"weights": "def"}))
    with pytest.raises(UserError, match="another model made"):
        place()


def picture_of(folder, counts: dict[str, int]):
    """The overview of a folder of so many images of each user, all of one colour of the user's, and its words."""
    for grey, (name, count) in enumerate(counts.items(), start=1):
        (folder / name).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64), (40 * grey,) * 3).save(folder / name / f"generated_{number:03d}.png")
    return overview(folder, list(counts), DataConfig("none", resolution=64))


def test_many_images_of_one_user_are_a_square_not_a_strip(tmp_path):
    picture, words = picture_of(tmp_path, {"ID1": 50})
    shown = sum(count for count, grey in picture.convert("L").getcolors() if grey == 40) / 64**2
    assert shown == 50
    assert picture.height <= picture.width < 1.5 * picture.height
    assert words == ""


def test_every_user_has_lines_of_its_own(tmp_path):
    picture, _ = picture_of(tmp_path, {"ID1": 7, "ID2": 1, "ID3": 2})
    first = np.asarray(picture.convert("L"))[33::68, picture.width - 4 * 68 + 33]
    assert first.tolist() == [40, 40, 80, 120]


def test_what_a_picture_leaves_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("train.runs.generated.GRID_COLUMNS", 2)
    monkeypatch.setattr("train.runs.generated.GRID_LINES", 2)
    picture, words = picture_of(tmp_path, {"ID1": 3, "ID2": 1, "ID3": 2})
    assert words == "3 of the folder's 6 images "
    assert picture.height == 2 * 68


@pytest.mark.parametrize("counts", [[1], [5] * 31, [200], [1000], [200] * 31, [5] * 100, [3000, 5], [5, 0, 7]])
def test_a_picture_has_at_most_31_lines_of_30_images(counts):
    columns, lines = layout(counts)
    there = sum(min(lines, -(-count // columns)) for count in counts[:31])
    assert 1 <= columns <= 30
    assert 1 <= there <= 31
