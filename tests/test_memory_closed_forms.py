"""What follows from shapes alone equals what the trace finds, to the byte, for every preset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.config import load as strict_yaml
from train.config.schema import Config
from train.memory.account import Account
from train.memory.components import components, without_effect
from train.memory.scenario import Setting
from train.memory.stages import trace

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = {name: (name,) for name in ("medium", "tight", "light", "sd", "demo")} | {
    "tokens": ("medium", "user_encoder.tokens_per_user=4"),
    "fp32": ("medium", "ldm_training.mixed_precision=no", "vae_training.mixed_precision=no"),
    "adversarial": ("medium", "vae_loss.adversarial_weight=0.5"),
    "fused": (
        "medium", "ldm_training.optimizer.fused=true", "vae_training.optimizer.fused=true",
        "vae_loss.adversarial_weight=0.5",
    ),
}


def config_of(preset: str, *more: str) -> Config:
    name, *overrides = *PRESETS[preset], *more
    return strict_yaml.load(Config, CONFIGS / f"{name}.yaml", [(f"--set {o}", *o.split("=", 1)) for o in overrides])


def owned(account: Account, category: str, component: str, clock: int) -> int:
    chosen = [c == category and k == component for c, k in zip(account.category, account.component, strict=True)]
    return int(account.live(of=np.array(chosen))[clock])


@pytest.mark.parametrize(
    ("preset", "stage"),
    [
        *((preset, "ldm") for preset in PRESETS if preset != "adversarial"),
        *((preset, "vae") for preset in ("medium", "demo", "fp32", "adversarial", "fused")),
        *((preset, "sample") for preset in ("medium", "sd")),
    ],
)
def test_closed_forms_equal_the_trace_to_the_byte(preset, stage):
    config = config_of(preset)
    account = Account(trace(Setting(config, stage, validates=False)))
    last = account.end - 1
    parts = components(config, stage, users=31)
    for part in parts:
        name = part.name
        assert owned(account, "weights", name, last) == part.weights
        assert owned(account, "gradients", name, last) == part.gradients
        assert owned(account, "optimizer state", name, last) == part.optimizer_state
    assert owned(account, "weights", "EMA", last) == sum(part.ema for part in parts)


@pytest.mark.parametrize(("stage", "trained"), [("ldm", "UNet"), ("vae", "VAE")])
@pytest.mark.parametrize("preset", ["medium", "light", "tight", "sd", "demo", "tokens", "fp32"])
def test_half_copies_equal_the_closed_form_when_the_forward_pass_ends(preset, stage, trained):
    """The largest sum of copies is reached inside the forward pass, when the last weight has been cast."""
    config = config_of(preset)
    account = Account(trace(Setting(config, stage, validates=False)))
    part = next(part for part in components(config, stage, users=31) if part.name == trained)
    assert account.of_category("half copies") == part.half_copies


def test_one_token_leaves_parameters_of_medium_without_effect():
    config = config_of("medium")
    assert without_effect(config, components(config, "ldm", 31)) == 4_548_352


def test_fused_and_divided_optimizers_keep_what_they_promise():
    setting = Setting(config_of("light"), validates=False)
    divided = replace(setting.with_training(shard_optimizer=True), processes=2)
    whole, fused, shared = (Account(trace(s)) for s in (setting, setting.with_fused(True), divided))
    state = whole.of_category("optimizer state")
    tensors = sum(c == "optimizer state" for c in whole.category)
    assert fused.of_category("optimizer state") == state + 4 * tensors // 2  # and a step count for each parameter
    assert shared.of_category("optimizer state") == pytest.approx(state / 2, rel=0.2)
    assert fused.peak("optimizer").bytes < whole.peak("optimizer").bytes
