"""Values without a meaning are refused by the sections themselves, and what a section tells of itself."""

from dataclasses import replace

import pytest

from train.base.errors import UserError
from train.config.sections import BUILT_IN_RECORDING, DataConfig, GenerationConfig, TrainingConfig, VAELossConfig


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"resolution": 4}, "resolution must be at least 8"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"recordings_per_user": 0}, "recordings_per_user must be at least 1"),
        ({"validation_fraction": 0.0}, "validation_fraction must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1"),
        ({"recording_pattern": "("}, r"recording_pattern '\(' is no regular expression"),
    ],
)
def test_data_settings_without_meaning_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        DataConfig(**settings)


@pytest.mark.parametrize("folder", ["data/simulated", "./data/simulated/", "/my/data/simulated"])
def test_recordings_of_the_built_in_data_set_need_not_be_told(folder):
    assert DataConfig(dir=folder).pattern == BUILT_IN_RECORDING
    assert DataConfig(dir=folder, recording_pattern="x").pattern == "x"
    assert DataConfig(dir="walks").pattern is DataConfig(dir="my_data/simulated").pattern is None


@pytest.mark.parametrize(
    "change",
    [
        {"kl_weight": -1.0},
        {"adversarial_weight": -1.0},
        {"adversarial_start": -1},
        {"perceptual_weight": -1.0},
        {"perceptual_weight": 1.0},
    ],
)
def test_impossible_weights_are_refused_by_name(change):
    with pytest.raises(UserError, match=next(iter(change))):
        replace(VAELossConfig(kl_weight=1e-3, adversarial_weight=0.5), **change)


def test_a_step_learns_from_all_its_micro_batches():
    assert TrainingConfig("runs/x", 3, 1, gradient_accumulation_steps=4).images_per_step == 12


@pytest.mark.parametrize(("images", "steps"), [(1, 5), (12, 5), (13, 10), (1000, 420)])
def test_epochs_grow_with_the_images_and_steps_do_not(images, steps):
    epochs = TrainingConfig("runs/x", 3, num_epochs=5, gradient_accumulation_steps=4)
    assert (epochs.total_steps(images), epochs.length_key) == (steps, "num_epochs")
    fixed = TrainingConfig("runs/x", 3, num_steps=7)
    assert (fixed.total_steps(images), fixed.length_key) == (7, "num_steps")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "num_epochs or num_steps must be set"),
        ({"num_epochs": 3, "num_steps": 5}, "num_epochs is 3 and num_steps 5; set only one of them"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, not 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
    ],
)
def test_a_training_without_one_length_is_refused(settings, expected):
    with pytest.raises(UserError, match=f"^{expected}$"):
        TrainingConfig("runs/x", 1, **settings)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"batch_size": 0}, UserError), ({"steps": 0}, ValueError), ({"guidance": -1.0}, ValueError)],
)
def test_generation_checks_its_own_keys_and_those_of_sampling(settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        GenerationConfig(**settings)
