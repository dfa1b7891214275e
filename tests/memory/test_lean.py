"""Bytes per sample that are kept for the backward pass, beside `diffusers` in the same run, on the meta device."""

from contextlib import nullcontext

import diffusers
import pytest
import torch
from torch import Tensor, nn

from nets.discriminator import PatchDiscriminator
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.memory.presets import config_of
from train.engine.lean import Lean
from train.engine.precision import DTYPES
from train.memory.cuda_rules import CudaRules
from train.memory.op_cache import SHAPES
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers
from train.speed.kept import Alive, kept_per_sample


class Rules(CudaRules):
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        """Without the options of `diffusers`, which say what is so anyway."""
        return super()._attend(q, k, v)


class AliveOnMeta(Alive):
    def call(self, func, args: tuple, kwargs: dict):
        return SHAPES.call(func, args, kwargs)[0]


def kept_in(losses, precision: str, lean: bool) -> int:
    """Bytes per sample, as on a card."""

    def under_its_rules(batch: int) -> Tensor:
        with (
            Rules("flash" if precision == "bf16" else "efficient") as rules,
            rules.autocast(None if precision == "no" else DTYPES[precision]),
            Lean() if lean else nullcontext(),
        ):
            return losses(batch)

    return kept_per_sample(under_its_rules, AliveOnMeta)


def squared(t: Tensor) -> Tensor:
    return t.float().square().mean()


def of_unet(net: nn.Module, width: int, tokens: int):
    def losses(batch: int) -> Tensor:
        context = torch.zeros(batch, tokens, width, device="meta", requires_grad=True)
        x, t = torch.zeros(batch, 4, 32, 32, device="meta"), torch.zeros(batch, device="meta")
        made = net(x, t, context)
        return squared(getattr(made, "sample", made))

    return losses


@pytest.mark.parametrize(
    ("preset", "tokens", "precision", "limit"),
    [
        ("medium", 1, "no", 0.25), ("medium", 4, "fp16", 0.23), ("light", 4, "no", 0.30), ("sd", 4, "no", 0.30),
    ],
)  # fmt: skip
def test_a_unet_keeps_at_most_three_tenths_of_what_diffusers_keeps(preset, tokens, precision, limit):
    config = config_of(preset).unet
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(config), diffusers.UNet2DConditionModel(**unet_to_diffusers(config))
    width = config.cross_attention_dim
    kept = kept_in(of_unet(ours, width, tokens), precision, lean=True)
    assert kept <= limit * kept_in(of_unet(theirs, width, tokens), precision, lean=False)


def of_vae(net: nn.Module, adversary: nn.Module | None):
    def losses(batch: int) -> Tensor:
        encoded = net.encode(torch.zeros(batch, 3, 128, 128, device="meta"))
        decoded = net.decode(getattr(encoded, "latent_dist", encoded).mode())
        decoded = getattr(decoded, "sample", decoded)
        return squared(decoded) if adversary is None else squared(decoded) + squared(adversary(decoded))

    return losses


@pytest.mark.parametrize("adversarial", [False, True], ids=["", "adversary"])
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_vae_keeps_less_than_half_of_what_diffusers_keeps(precision, adversarial):
    config = config_of("medium").vae
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(config), diffusers.AutoencoderKL(**vae_to_diffusers(config))
        adversary = PatchDiscriminator(3).requires_grad_(False) if adversarial else None
    kept = kept_in(of_vae(ours, adversary), precision, lean=True)
    theirs_kept = kept_in(of_vae(theirs, adversary), precision, lean=False)
    assert kept <= 0.5 * theirs_kept
