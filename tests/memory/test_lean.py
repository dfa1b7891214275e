"""Bytes per sample that are kept for the backward pass, beside `diffusers` in the same run, on the meta device."""

import gc
import weakref
from contextlib import nullcontext

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nets.discriminator import PatchDiscriminator
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.memory.presets import config_of
from train.engine.lean import Lean
from train.engine.precision import DTYPES
from train.memory.cuda_rules import CudaRules
from train.memory.op_cache import SHAPES
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers


class Rules(CudaRules):
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        """Without the options of `diffusers`, which say what is so anyway."""
        return super()._attend(q, k, v)


class Alive(TorchDispatchMode):
    """While entered, follows the storages that operators make; `bytes` are those that are alive."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, _ = SHAPES.call(func, args, kwargs or {})
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes(), weakref.ref(storage, lambda _, k=key: self.sizes.pop(k))
        return result

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.sizes.values())


def kept_per_sample(losses, precision: str, lean: bool) -> int:
    """Of `losses(batch)`: what a second sample adds, so that weights and their copies are out of it."""
    found = []
    for batch in (1, 2):
        gc.collect()
        with Rules("flash" if precision == "bf16" else "efficient") as rules, Alive() as alive:
            with rules.autocast(None if precision == "no" else DTYPES[precision]), Lean() if lean else nullcontext():
                loss = losses(batch)
            found.append(alive.bytes)
        assert loss.requires_grad
    return found[1] - found[0]


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
        ("medium", 1, "no", 0.27), ("medium", 4, "fp16", 0.27), ("light", 4, "no", 0.35), ("sd", 1, "fp16", 0.21),
    ],
)  # fmt: skip
def test_a_unet_keeps_less_than_a_third_of_what_diffusers_keeps(preset, tokens, precision, limit):
    config = config_of(preset).unet
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(config), diffusers.UNet2DConditionModel(**unet_to_diffusers(config))
    width = config.cross_attention_dim
    kept = kept_per_sample(of_unet(ours, width, tokens), precision, lean=True)
    assert kept <= limit * kept_per_sample(of_unet(theirs, width, tokens), precision, lean=False)


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
    kept = kept_per_sample(of_vae(ours, adversary), precision, lean=True)
    theirs_kept = kept_per_sample(of_vae(theirs, adversary), precision, lean=False)
    assert kept <= 0.5 * theirs_kept
