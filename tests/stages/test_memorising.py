"""A run says once, at the right step, that it only learns by heart; and the copies that it counts are there."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.engine.problem import CPU
from tests.tiny import tiny, tiny_images, tiny_vae
from train.data.images import to_uint8
from train.data.split import Split
from train.engine.micro_batch import MicroBatch
from train.engine.trainer import Trainer
from train.runs import final_model
from train.stages.ldm import LDMStage
from train.stages.memorising import by_heart_since, validations, warning


def losses(training: list[float], validation: list[float], copies: float = 0.0) -> list[dict]:
    """Validations every 100 steps."""
    return [
        {"step": 100 * (place + 1), "training_loss": t, "validation_loss": v, "copies": copies}
        for place, (t, v) in enumerate(zip(training, validation, strict=True))
    ]


def says(found: list[dict]) -> list[int | None]:
    """What each validation makes of those until then."""
    return [by_heart_since(found[: place + 1]) for place in range(len(found))]


FALLING = [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        (FALLING, [0.6, 0.5, 0.45, 0.5, 0.55, 0.6], [None] * 4 + [300, 300]),  # at the second rise
        (FALLING, [0.6, 0.5, 0.45, 0.5, 0.44, 0.6], [None] * 6),  # what was one rise is over
        (FALLING, [0.6, 0.5, 0.45, 0.5, 0.451, 0.5], [None] * 6),  # hardly a rise in between
        (FALLING, [0.6, 0.5, 0.45, 0.46, 0.46, 0.46], [None] * 6),  # hardly a rise at all
        (FALLING, [0.6, 0.5, 0.4, 0.3, 0.2, 0.15], [None] * 6),  # both fall
        ([0.5, 0.4, 0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.4, 0.5, 0.6, 0.7], [None] * 6),  # both rise: it diverges
        (FALLING, [0.6, 0.5, 0.45, 0.6, 0.6, 0.3], [None] * 4 + [300, None]),  # it was wrong
        (FALLING, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [None] * 2 + [100] * 4),  # from the first
        ([], [], []),
    ],
)  # fmt: skip
def test_two_clear_rises_while_training_loss_falls_are_enough(training, validation, expected):
    assert says(losses(training, validation)) == expected


def test_noise_of_a_percent_is_no_rise():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = 1 + 0.01 * torch.randn(2, 50, generator=rng).double()
        training, validation = (torch.linspace(0.2, 0.1, 50) * noise[0]).tolist(), (0.3 * noise[1]).tolist()
        assert set(says(losses(training, validation))) == {None}


def test_the_sentence_names_the_step_and_the_share_of_copies():
    rising = [0.6, 0.5, 0.45, 0.5, 0.55, 0.6]
    assert warning(losses(FALLING, rising, 0.125)) == (
        "since step 300 the loss on validation images rises while that on training images falls (12.5% of the samples "
        "are copies): more steps only learn these images by heart; stop here, or give more images"
    )
    assert "(no copies are seen among the samples yet)" in warning(losses(FALLING, rising))
    assert warning(losses(FALLING, FALLING)) is None


def test_lines_of_steps_of_older_runs_and_lost_losses_are_passed_over():
    found = losses(FALLING, FALLING)
    others = [{"step": 1, "loss": 2.0}, {"step": 2, "validation_loss": 0.1}, {**found[0], "training_loss": math.nan}]
    assert validations([*others, *found]) == found


# ---- a run


class Enlarging(nn.Module):
    """In place of a VAE: a latent is an image of half the size."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=2) / 2


def learning_by_heart(folder: Path, steps: int) -> Trainer:
    """A run on eight images, two of each of four users, that are validated with four others; all are random blocks."""
    config = tiny(
        f"ldm_training.output_dir={folder}", "ldm_training.num_epochs=null", f"ldm_training.num_steps={steps}",
        "ldm_training.batch_size=8", "ldm_training.sample_interval=50", "ldm_training.optimizer.lr_schedule=constant",
        "ldm_training.optimizer.learning_rate=1e-2", "vae.latent_channels=3", "unet.channels=[16, 16]",
        "sampling.steps=8", "sampling.guidance=1", "ldm_loss.condition_dropout=0", "user_encoder.dropout=0",
    )  # fmt: skip
    vae = Enlarging(tiny_vae(config, scaling_factor=1.0).config)
    latents = torch.randn(14, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 2)
    latents = latents.repeat_interleave(2, 3)  # N 3 8 8
    data = replace(tiny_images(14, users=4), images=to_uint8(vae.decode(latents)))
    stage = LDMStage(config, data, vae)
    stage.build(CPU, "no")
    stage.split = Split(torch.arange(8), torch.arange(8, 12), torch.arange(12, 14))
    stage.use_latents(torch.stack([latents, torch.zeros_like(latents)], dim=1))
    return Trainer(stage, MicroBatch(config.ldm_training, 8), CPU)


def run(folder: Path, steps: int) -> LDMStage:
    """Trained in `folder` up to this step."""
    trainer = learning_by_heart(folder, steps)
    trainer.resume()
    trainer.run(lambda: None)
    return trainer.stage


def last_words(stage: LDMStage, monkeypatch) -> list[str]:
    monkeypatch.setattr(final_model, "save_ldm", lambda *_: None)
    return stage.export(stage.model).splitlines()


SENTENCE = "LDM: since step "


def test_a_model_that_learns_by_heart_says_so_once_in_each_run(tmp_path, capsys, monkeypatch):
    few = run(tmp_path, 100)
    assert SENTENCE not in capsys.readouterr().err
    assert len(last_words(few, monkeypatch)) == 1
    assert few.validations()[-1]["copies"] < 0.3

    run(tmp_path, 200)  # goes on, with what it knew
    assert capsys.readouterr().err.count(SENTENCE) == 1

    many = run(tmp_path, 250)  # it is still so
    assert capsys.readouterr().err.count(SENTENCE) == 1
    *_, before, last = last_words(many, monkeypatch)
    assert before.startswith("LDM: model in ")
    assert last.startswith(SENTENCE)
    assert last.endswith("by heart; stop here, or give more images")
    assert many.validations()[-1]["copies"] > 0.6
    assert len(many.validations()) == 5


def test_training_loss_and_validation_loss_are_of_the_same_noise(tmp_path):
    """Where the images are the same, so are the losses."""
    stage = learning_by_heart(tmp_path, 1).stage
    stage.split = replace(stage.split, validation=stage.split.train)
    found = stage.validation_losses(stage.model.eval(), 8)
    assert found["training_loss"] == found["validation_loss"]


def test_what_a_validation_found_is_in_the_log(tmp_path):
    run(tmp_path, 50)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line.keys() == {"step", "validation_loss", "training_loss", "copies"}
