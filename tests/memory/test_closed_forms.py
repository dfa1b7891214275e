"""What follows from shapes alone equals what the trace finds, to the byte, for every preset."""

from dataclasses import replace

import numpy as np
import pytest

from tests.memory.presets import PRESETS, config_of
from train.memory.account import Account
from train.memory.components import components, without_effect
from train.memory.scenario import Scenario
from train.memory.step import trace_of


def owned(account: Account, category: str, component: str, clock: int) -> int:
    chosen = [c == category and k == component for c, k in zip(account.category, account.component, strict=True)]
    return int(account.live(mask=np.array(chosen))[clock])


@pytest.mark.parametrize(
    ("preset", "stage"),
    [
        *((preset, "ldm") for preset in PRESETS if preset != "adversarial"),
        *((preset, "vae") for preset in ("medium", "demo", "fp32", "adversarial", "unfused")),
        *((preset, "sample") for preset in ("medium", "sd")),
    ],
)
def test_closed_forms_equal_the_trace_to_the_byte(preset, stage):
    scenario = Scenario(config_of(preset), stage, validates=False)
    account = Account(trace_of(scenario))
    last = account.end - 1
    parts = components(scenario)
    for part in parts:
        name = part.name
        assert owned(account, "weights", name, last) == part.weights
        assert owned(account, "gradients", name, last) == part.gradients
        assert owned(account, "optimizer state", name, last) == part.optimizer_state
    assert owned(account, "weights", "EMA", last) == sum(part.ema for part in parts)


@pytest.mark.parametrize(("stage", "trained"), [("ldm", "UNet"), ("vae", "VAE")])
@pytest.mark.parametrize("preset", ["medium", "light", "tight", "sd", "demo", "tokens", "fp32"])
def test_half_copies_equal_the_closed_form_after_forward_pass(preset, stage, trained):
    """The largest sum of copies is reached inside the forward pass, when the last weight has been cast."""
    scenario = Scenario(config_of(preset), stage, validates=False)
    account = Account(trace_of(scenario))
    part = next(part for part in components(scenario) if part.name == trained)
    assert account.of_category("half copies") == part.half_copies


def test_one_token_leaves_parameters_of_medium_without_effect():
    config = config_of("medium")
    assert without_effect(config, components(Scenario(config))) == 4_548_352


def test_fused_and_divided_optimizers_keep_what_they_promise():
    scenario = Scenario(config_of("light"), validates=False).with_fused(False)
    divided = replace(scenario.with_training(shard_optimizer=True), processes=2)
    whole, fused, shared = (Account(trace_of(s)) for s in (scenario, scenario.with_fused(True), divided))
    state = whole.of_category("optimizer state")
    tensors = sum(c == "optimizer state" for c in whole.category)
    assert fused.of_category("optimizer state") == state + 4 * tensors // 2  # and a step count for each parameter
    assert shared.of_category("optimizer state") == pytest.approx(state / 2, rel=0.2)
    assert fused.peak("optimizer").bytes < whole.peak("optimizer").bytes
