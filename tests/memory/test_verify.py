"""A training beside its account: what is printed, and when it warns."""

from pathlib import Path

import pytest
from torch import nn

from tests.memory.trainings import tiny_trainer
from train.engine.step import Learner
from train.engine.trainer import Trainer
from train.memory.components import components
from train.memory.scenario import Scenario
from train.memory.verify import STEPS, alive, compare, watch_memory

ADVERSARIAL = "vae_loss.adversarial_weight=0.5"
STAGES = pytest.mark.parametrize(("stage", "settings"), [("ldm", ()), ("vae", ()), ("vae", (ADVERSARIAL,))])


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return tiny_trainer("ldm", tmp_path)


@STAGES
def test_memory_held_between_steps_is_as_predicted(stage, settings, tmp_path, capsys):
    trainer = tiny_trainer(stage, tmp_path, *settings)
    look = watch_memory(trainer, "no")
    assert "predicted" in capsys.readouterr().out
    assert trainer.total_steps >= STEPS + 2
    trainer.run(look)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("measured") == 1
    assert "warning" not in printed.err


@STAGES
def test_live_bytes_are_those_of_the_closed_forms(stage, settings, tmp_path):
    unfused = f"{stage}_training.optimizer.fused=false"  # whose step counts lie beside the parameters on a card only
    trainer = tiny_trainer(stage, tmp_path, unfused, *settings)
    trainer.run(lambda: None)
    parts = components(Scenario(trainer.stage.config, stage, users=3))
    models = [*trainer.stage.models(), trainer.ema.model]
    assert alive(models, [learner.optimizer for learner in trainer.stage.learners()]) == {
        "weights": sum(part.weights + part.ema for part in parts),
        "gradients": sum(part.gradients for part in parts),
        "optimizer state": sum(part.optimizer_state for part in parts),
    }


def test_a_model_that_was_not_counted_is_warned_of(trainer, monkeypatch, capsys):
    models = [*trainer.stage.models(), nn.Linear(500, 500)]
    monkeypatch.setattr(trainer.stage, "models", lambda: models)
    trainer.run(watch_memory(trainer, "no"))
    assert "warning: weights" in capsys.readouterr().err


@pytest.mark.parametrize(("peak", "warns"), [(1000, False), (1029, False), (1032, True), (968, True)])
def test_more_than_3_percent_is_warned_of(peak, warns, capsys):
    compare({"peak": 1000}, {"peak": peak})
    assert bool(capsys.readouterr().err) == warns


def test_skipped_steps_are_not_counted(trainer, monkeypatch, capsys):
    tried, looked = [], []
    take = Learner.step

    def skip_the_first(learner: Learner, loss: float, grad_norm: float) -> bool:
        tried.append(None)
        return len(tried) > STEPS and take(learner, loss, grad_norm)

    def look() -> None:
        watch()
        looked.append("measured" in "".join(capsys.readouterr()))

    monkeypatch.setattr(Learner, "step", skip_the_first)
    watch = watch_memory(trainer, "no")
    trainer.run(look)
    assert len(tried) == STEPS + trainer.total_steps
    assert looked.index(True) == STEPS - 1
    assert len(looked) == trainer.total_steps


def test_the_precision_that_is_computed_is_predicted(tmp_path, capsys):
    """Which is not always the config's: the CPU computes fp16 in fp32."""
    said = []
    for configured, computed in (("no", "no"), ("fp16", "no"), ("fp16", "fp16")):
        settings = ("ldm_training.batch_size=128", f"ldm_training.mixed_precision={configured}")
        watch_memory(tiny_trainer("ldm", tmp_path, *settings), computed)
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0] == said[1] != said[2]
