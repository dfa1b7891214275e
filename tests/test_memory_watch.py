"""A training beside its account: what is printed, and when it warns."""

import pytest
import torch
from torch import nn

from tests.tiny import tiny, tiny_denoiser, tiny_vae
from train.engine.ema import EMA
from train.engine.optim import make_adamw
from train.engine.step import StepResult
from train.memory.components import components
from train.memory.scenario import Setting
from train.memory.verify import WINDOWS, compare, live, watched


@pytest.fixture
def run():
    """A step that changes nothing but gradients and the optimizer's state, and what it works on."""
    config = tiny("data.resolution=32")
    model = tiny_denoiser(config)
    optimizer = make_adamw(model.trained_parameters(), config.ldm_training.optimizer)
    models = [tiny_vae(config), model, EMA(model, 0.9).model]

    def take_step(step: int) -> StepResult:
        for p in model.trained_parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        return StepResult(4, True, {"loss": 0.0}, 0.0)

    return Setting(config, "ldm", users=3), take_step, models, [optimizer]


def test_what_stands_between_steps_is_as_predicted(run, capsys):
    setting, take_step, models, optimizers = run
    watching = watched(take_step, setting, torch.device("cpu"), models, optimizers)
    assert "predicted" in capsys.readouterr().out
    for step in range(WINDOWS + 2):
        assert watching(step).taken
    printed = capsys.readouterr()
    assert printed.out.count("measured") == 1
    assert not printed.err


def test_live_bytes_are_those_of_the_closed_forms(run):
    setting, take_step, models, optimizers = run
    take_step(0)
    parts = components(setting.config, "ldm", 3)
    assert live(models, optimizers) == {
        "weights": sum(part.weights + part.ema for part in parts),
        "gradients": sum(part.gradients for part in parts),
        "optimizer state": sum(part.optimizer_state for part in parts),
    }


def test_a_model_that_was_not_counted_is_warned_of(run, capsys):
    setting, take_step, models, optimizers = run
    watching = watched(take_step, setting, torch.device("cpu"), [*models, nn.Linear(500, 500)], optimizers)
    for step in range(WINDOWS):
        watching(step)
    assert "warning: weights" in capsys.readouterr().err


@pytest.mark.parametrize(("peak", "warns"), [(1000, False), (1029, False), (1032, True), (968, True)])
def test_more_than_3_percent_is_warned_of(peak, warns, capsys):
    compare({"peak": 1000}, {"peak": peak})
    assert bool(capsys.readouterr().err) == warns


def test_skipped_steps_are_not_counted(run, capsys):
    setting, _, models, optimizers = run
    skipped = StepResult(4, False, {"loss": 0.0}, 0.0)
    watching = watched(lambda step: skipped, setting, torch.device("cpu"), models, optimizers)
    for step in range(WINDOWS):
        watching(step)
    assert "measured" not in capsys.readouterr().out
