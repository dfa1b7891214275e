"""Configs that several tests account for, and a GPU that is too small for most of them."""

from pathlib import Path

import pytest

from train.config.schema import Config
from train.memory import fit, models, step
from train.memory.gpus import GPU

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {name: (name,) for name in ("medium", "tight", "light", "sd", "demo")} | {
    "tokens": ("medium", "user_encoder.tokens_per_user=4"),
    "fp32": ("medium", "ldm_training.mixed_precision=no", "vae_training.mixed_precision=no"),
    "adversarial": ("medium", "vae_loss.adversarial_weight=0.5"),
    "unfused": (
        "medium", "ldm_training.optimizer.fused=false", "vae_training.optimizer.fused=false",
        "vae_loss.adversarial_weight=0.5",
    ),
}  # fmt: skip
CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True])
SMALL_GPU = GPU("imaginary", 4.0, (7, 5), "")


def config_of(preset: str, *more: str) -> Config:
    """A preset, with `section.key=value` changes."""
    name, *overrides = *PRESETS[preset], *more
    return Config.read(CONFIGS / f"{name}.yaml", [(f"--set {o}", *o.split("=", 1)) for o in overrides])


def forget_traces() -> None:
    """What comes next is built and traced anew."""
    for known in (fit.account_of, fit._growth, step._begun_once, models._built_once):
        known.cache_clear()
