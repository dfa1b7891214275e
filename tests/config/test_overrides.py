"""Changes of a config from Python mean what their values are."""

from pathlib import Path

import numpy as np
import pytest

from tests.tiny import PATH, tiny
from train.base.errors import UserError
from train.config.schema import Config


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"seed": 8, "data.horizontal_flip": False}, ["seed=8", "data.horizontal_flip=false"]),
        ({"unet": {"channels": (4, 8), "num_heads": np.int64(4)}}, ["unet.channels=[4, 8]", "unet.num_heads=4"]),
        ({"vae_training.optimizer.learning_rate": 1e-5}, ["vae_training.optimizer.learning_rate=1e-5"]),
        ({"vae_training.optimizer": {"betas": [0.8, 0.9]}}, ["vae_training.optimizer.betas=[0.8, 0.9]"]),
        ({"data.dir": Path("a/b"), "latents.vae_path": None}, ["data.dir=a/b", "latents.vae_path=null"]),
        ({"data.recording_pattern": r"^(day\d+)_: #"}, [r"data.recording_pattern=^(day\d+)_: #"]),
        ({"data": {"recording_pattern": "12", "dir": Path("no")}}, ["data.recording_pattern=12", "data.dir=no"]),
        ({"vae_training.num_epochs": 3, "ldm_training.num_steps": 5},
         ["vae_training.num_epochs=3", "ldm_training.num_steps=5"]),
        ({"ldm_training.mixed_precision": "no"}, ["ldm_training.mixed_precision=no"]),
        ({"data.channels": 1}, ["data.channels=1"]), ({"seed": "9"}, ["seed=9"]),
    ],
)  # fmt: skip
def test_changes_mean_what_settings_of_the_command_line_mean(changes, settings):
    """Of a file as well as of a config that has been read, whose derived keys follow."""
    assert Config.of(PATH, changes) == Config.of(str(PATH), changes) == Config.of(tiny(), changes) == tiny(*settings)


def test_a_config_without_changes_is_itself():
    config = tiny()
    assert Config.of(config) is config
    assert Config.of(config, {}) is config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1.5}, r"^seed=1\.5: seed must be a whole number, not 1\.5"),
        ({"data.resolution": 7}, "^data.resolution=7: section data: resolution must be at least 8"),
        ({"data.dir": {1}}, r"^data.dir=\{1\}: a set is no value of a config"),
        ({"data.seed": np.zeros(2)}, "a ndarray is no value of a config"),
        ({"vae_loss.kl_weight": float("inf")}, "^vae_loss.kl_weight=inf: vae_loss.kl_weight must be a finite number"),
        ({"vae_loss.kl_weight": True}, "^vae_loss.kl_weight=True: vae_loss.kl_weight must be a finite number"),
        ({"dat.seed": 1}, 'unknown key "dat" in the top level .did you mean data'),
        ({"vae_training.num_epochs": 1, "vae_training.num_steps": 2}, "num_epochs=1 and .*num_steps=2: only one of"),
        ({"vae_training": {"num_epochs": 1, "num_steps": 2}}, "num_epochs is 1 and num_steps 2; set only one"),
    ],
)  # fmt: skip
def test_a_change_that_cannot_be_is_named_in_one_sentence(changes, sentence):
    for source in (PATH, tiny()):
        with pytest.raises(UserError, match=sentence):
            Config.of(source, changes)
