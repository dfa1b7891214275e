"""A folder of generated images is named after what decides them, and after nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from train.base.errors import UserError
from train.base.files import read_json
from train.config.sections import GenerationConfig
from train.runs.final_model import load_users, save_users
from train.runs.generated import claim_folder, default_folder, image_files, image_paths, settings_of

SAMPLING = GenerationConfig(steps=4, guidance_interval=(0.1, 5.0), batch_size=4)
MODEL = Path("runs/ldm/final_model")


@pytest.fixture
def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(2, 3), nn.Linear(3, 1)


def folder_of(sampling, seed, models) -> Path:
    return default_folder(MODEL, settings_of(sampling, seed, models))


def test_the_batch_size_changes_neither_settings_nor_folder(models):
    other = replace(SAMPLING, batch_size=1)
    assert settings_of(other, 0, models) == settings_of(SAMPLING, 0, models)
    assert folder_of(other, 0, models) == folder_of(SAMPLING, 0, models)


@pytest.mark.parametrize(
    "change", [{"sampler": "ddim"}, {"steps": 5}, {"spacing": "leading"}, {"eta": 0.5}, {"guidance": 3.0},
               {"guidance_interval": None}],
)  # fmt: skip
def test_what_changes_images_changes_settings_and_folder(models, change):
    sampling = replace(SAMPLING, **({"sampler": "ddim"} if "eta" in change else {}))
    other = replace(sampling, **change)
    assert other != sampling
    assert settings_of(other, 0, models) != settings_of(sampling, 0, models)
    assert folder_of(other, 0, models) != folder_of(sampling, 0, models)


def test_a_users_images_are_found_however_accents_are_stored(tmp_path):
    """In a folder that another system has copied, and by names that an earlier version saved."""
    nfc, nfd = "\u00e9", "e\u0301"
    (tmp_path / nfd).mkdir()
    (tmp_path / nfd / "generated_000.png").touch()
    assert image_paths(tmp_path, [nfc], [(0, 0)])[0, 0].is_file()
    assert len(image_files(tmp_path, nfc)) == 1
    save_users([nfd, "b"], tmp_path)
    assert load_users(tmp_path) == [nfc, "b"]


def test_other_seeds_and_other_weights_have_folders_of_their_own(models):
    folders = {folder_of(SAMPLING, 0, models), folder_of(SAMPLING, 1, models)}
    with torch.no_grad():
        models[1].bias += 1e-6
    assert len({*folders, folder_of(SAMPLING, 0, models)}) == 3
    assert all(folder.parent == MODEL.parent / "generated" for folder in folders)


def test_a_folder_goes_on_with_its_own_settings_only(tmp_path, models):
    settings, other = settings_of(SAMPLING, 0, models), settings_of(SAMPLING, 1, models)
    for _ in range(2):
        claim_folder(tmp_path / "data", tmp_path / "images", settings)
    assert read_json(tmp_path / "images/settings.json") == settings
    with pytest.raises(UserError, match="holds images of other seed; give another"):
        claim_folder(tmp_path / "data", tmp_path / "images", other)
    with pytest.raises(UserError, match="is not an empty folder, nor one of generated images"):
        claim_folder(tmp_path / "data", tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
