"""Trainings from Python: the commands' own, with changes as a dictionary, and what they return."""

from pathlib import Path

import pytest
import torch

from tests.tiny import PATH, USERS, make_images, tiny
from train import ldm, vae
from train.api import Stopped, UserDiffusion, UserError, train_ldm, train_vae
from train.engine.log import read_lines
from train.runs import model_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


def assert_same_weights(one: Path, other: Path) -> None:
    weights = [model_folder.load(folder).state_dict() for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_training_from_python_is_that_of_the_command(data, tmp_path):
    """From the images to images, with the same weights on the way."""
    changes = {"data.dir": data, "vae_training": {"output_dir": tmp_path / "python/v", "num_steps": 3}}
    first = train_vae(PATH, changes)
    assert (first.folder, first.model) == (tmp_path / "python/v", tmp_path / "python/v/final_model")
    changes |= {"ldm_training.output_dir": tmp_path / "python/l", "ldm_training.num_steps": 4}
    second = train_ldm(tiny(), changes)
    for trained, steps in ((first, 3), (second, 4)):
        assert trained.metrics == read_lines(trained.folder / "metrics.jsonl")
        assert trained.last["step"] == steps
    assert second.last["validation_loss"] == second.metrics[-1]["validation_loss"]
    assert list(UserDiffusion.load(second.model).sample(per_user=1)) == list(USERS)

    flags = ["--config", str(PATH), "--data_dir", str(data), "--output_dir"]
    vae.main([*flags, str(tmp_path / "v"), "--num_steps", "3"])
    ldm.main([*flags, str(tmp_path / "l"), "--num_steps", "4", "--vae_path", str(first.model)])
    assert_same_weights(first.model, tmp_path / "v/final_model")
    assert_same_weights(second.model / "unet", tmp_path / "l/final_model/unet")


def test_a_training_that_ends_early_raises_and_goes_on_later(data, tmp_path):
    changes = {"data.dir": str(data), "vae_training.output_dir": str(tmp_path / "v"), "vae_training.num_steps": 2}
    with pytest.raises(Stopped, match=r"saved after step 1 of 2"):
        train_vae(tiny(), changes | {"vae_training.max_hours": 1e-9})
    assert train_vae(tiny(), changes).last["step"] == 2


@pytest.mark.parametrize(
    ("train", "changes", "sentence"),
    [
        (train_vae, {"data.dir": "nowhere"}, "nowhere"), (train_ldm, {"latents.vae_path": "none"}, "none: there is no"),
        (train_ldm, {"unet.num_head": 3}, r'unet\.num_head=3: unknown key "num_head" in section unet .did you'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_of_one_sentence(tmp_path, train, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train(PATH, changes | {f"{train.__name__[-3:]}_training.output_dir": tmp_path / "out"})
    assert not (tmp_path / "out").exists()
