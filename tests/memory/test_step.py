"""What a trace runs is what training runs, and what was traced before is the same when it is run again."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.memory.presets import config_of, forget_traces
from tests.memory.trainings import tiny_trainer
from train import ldm, vae
from train.api import training
from train.engine.ema import EMA
from train.engine.step import Learner
from train.memory.account import Account
from train.memory.advice import levers
from train.memory.models import blank_stage, parts_of
from train.memory.scenario import Scenario
from train.memory.step import prepare, trace_of
from train.stages.ldm import LDMStage
from train.stages.vae import VAEStage

COMMANDS = pytest.mark.parametrize(("command", "stage"), [(ldm, LDMStage), (vae, VAEStage)])
STAGES = pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (LDMStage, ()),
        (LDMStage, ("latents.cache_latents=false",)),
        (VAEStage, ()),
        (VAEStage, ("vae_loss.adversarial_weight=0.5",)),
    ],
)


class Calls(list):
    """The names of the methods that are called, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]):
        for owner, name in methods:
            monkeypatch.setattr(owner, name, self.noted(getattr(owner, name)))

    def noted(self, method):
        def call(*args, **kwargs):
            self.append(method.__qualname__)
            return method(*args, **kwargs)

        return call


@COMMANDS
def test_a_trace_runs_the_very_class_that_training_runs(command, stage, monkeypatch):
    trained, ended = [], SimpleNamespace(run=lambda _: None, training=SimpleNamespace(output_dir="nowhere"))
    monkeypatch.setattr(training, "prepared", lambda which, *_: trained.append(which) or nullcontext((ended, None)))
    command.main(["--config", "configs/demo.yaml"])
    scenario = Scenario(config_of("demo"), stage.name, validates=False)
    (used,) = trained  # the VAE's has judges besides, who come between the steps
    assert all(getattr(used, name) is getattr(stage, name) for name in ("build", "draw", "losses", "after_step"))
    assert type(blank_stage(scenario)) is stage

    forget_traces()
    calls = Calls(monkeypatch, (stage, "draw"), (stage, "losses"))
    trace_of(scenario)
    assert calls[:2] == [f"{stage.__name__}.draw", f"{stage.__name__}.losses"]


@STAGES
def test_a_trace_calls_what_a_step_of_the_training_calls(stage, settings, tmp_path, monkeypatch):
    """Draws, losses of each micro-batch, clipping, the optimizers' steps and the average, in the same order."""
    section = f"{stage.name}_training"
    trainer = tiny_trainer(
        stage.name, tmp_path, f"{section}.batch_size=2", f"{section}.gradient_accumulation_steps=2", *settings
    )
    calls = Calls(
        monkeypatch, (stage, "draw"), (stage, "losses"), (EMA, "update"),
        *((Learner, name) for name in ("accumulate", "clip", "step")),
    )  # fmt: skip
    steps = []

    def look() -> None:
        steps.append(calls.copy())
        calls.clear()

    trainer.run(look)
    forget_traces()
    calls.clear()
    trace_of(Scenario(trainer.stage.actual_config, stage.name, users=3, validates=False))
    assert calls == [*steps[0], *steps[1]]
    assert steps[0].count(f"{stage.__name__}.losses") == 2


def test_a_trace_validates_with_the_losses_of_the_training(monkeypatch):
    scenario = Scenario(config_of("demo"), validates=False)
    calls = Calls(monkeypatch, (LDMStage, "losses"), (LDMStage, "draw_validation"))
    trace_of(scenario)
    steps = calls.copy()
    assert "LDMStage.draw_validation" not in steps
    calls.clear()
    trace_of(replace(scenario, validates=True))
    assert calls == [*steps, "LDMStage.draw_validation", "LDMStage.losses", *steps[: len(steps) // 2]]


@STAGES
def test_every_model_of_a_stage_is_a_component(stage, settings):
    made = blank_stage(Scenario(config_of("demo", *settings), stage.name))
    counted = [id(p) for part in parts_of(made).values() for p in part.parameters()]
    there = {id(p) for model in made.models() for p in model.parameters()}
    assert set(counted) == there
    assert len(counted) == len(there)


def test_real_tensors_are_stepped_by_the_training_too(monkeypatch):
    """What a measurement and the comparison with the real allocator run."""
    scenario = Scenario(config_of("demo", "ldm_training.batch_size=1"), attention="math", device="cpu", validates=False)
    step = prepare(scenario)
    assert type(step.stage) is LDMStage
    before = [p.clone() for p in step.beginning.trained]
    calls = Calls(monkeypatch, (LDMStage, "losses"), (Learner, "step"))
    step.take()
    assert {"LDMStage.losses", "Learner.step"} <= set(calls)
    assert all(p.grad is not None for p in step.beginning.trained)
    assert any((p != old).any() for p, old in zip(step.beginning.trained, before, strict=True))


@pytest.mark.parametrize("precision", ["no", "fp16"])
@pytest.mark.parametrize("stage", ["ldm", "vae"])
@pytest.mark.parametrize("name", ["as it is", "optimizer.fused", "shard_optimizer on 2 cards", "ema_on_cpu"])
def test_a_trace_from_the_cache_equals_a_fresh_trace(stage, name, precision):
    scenario = Scenario(config_of("demo"), stage).with_training(
        batch_size=4, gradient_accumulation_steps=2, mixed_precision=precision
    )
    trace_of(scenario)
    pulled = {lever.name: lever.pull(scenario) for lever in levers(scenario)}.get(name, scenario)
    first, again = (Account(trace_of(pulled)) for _ in range(2))
    forget_traces()
    fresh = Account(trace_of(pulled))
    for other in (again, fresh):
        for what in ("bytes", "born", "died", "category", "forward_ends"):
            assert np.array_equal(getattr(first, what), getattr(other, what))
        places = [[(s.phase, s.operator, s.module) for s in account.storages] for account in (first, other)]
        assert places[0] == places[1]
