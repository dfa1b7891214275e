"""The models of a stage, without their numbers, and the bytes that follow from their shapes alone.

Models stand on torch's meta device: shapes and dtypes, no storage, no time. What a weight costs is
arithmetic (n parameters that train, of N):

    weights          4 N    float32, whatever the precision of the arithmetic
    gradients        4 n
    optimizer state  8 n    AdamW's two averages (its step counts stay on the CPU unless it is fused)
    EMA              4 N    a second model, which averages the first
    half copies      2 m    autocast's copies of the m parameters of linear and convolutional layers

The trace (train/memory/trace.py) must find the same bytes, and a test holds it to that.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nets.condition import UserConditionEncoder, UserEncoderConfig
from nets.discriminator import PatchDiscriminator
from nets.perceptual import VGG16Distance
from nets.unet import UNet2DConditionModel, UNetConfig
from nets.vae import AutoencoderKL, VAEConfig
from train.config.schema import Config
from train.memory.without_compiler import without_compiler
from train.stages.denoising import UserDenoiser

Stage = Literal["vae", "ldm", "sample"]


@dataclass(frozen=True, eq=False)
class Component:
    """A model that a stage keeps on the card, and what the stage does with it."""

    name: str
    module: nn.Module
    trained: tuple[nn.Parameter, ...] = ()
    averaged: bool = False
    """Whether an EMA stands beside it."""
    fused: bool = False
    """Whether AdamW's step counts, one number for each tensor, are on the card too."""
    half: bool = False
    """Whether autocast computes it in half precision."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def weights(self) -> int:
        return size([*self.module.parameters(), *self.module.buffers()])

    @property
    def gradients(self) -> int:
        return size(self.trained)

    @property
    def optimizer_state(self) -> int:
        return 2 * size(self.trained) + 4 * len(self.trained) * self.fused

    @property
    def ema(self) -> int:
        return self.weights if self.averaged else 0

    @property
    def half_copies(self) -> int:
        """What autocast has cast, and keeps, when a forward pass ends: only parameters that train are kept."""
        trained = {id(p) for p in self.trained}
        cast = [p for m in self.module.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()]
        return sum(2 * p.numel() for p in cast if id(p) in trained) if self.half else 0


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def built_on(device: str) -> Iterator[None]:
    """Where models are built. On the meta device it takes no time: weights do not even get initial values."""
    with torch.device(device), ExitStack() as on_meta:
        if device == "meta":
            on_meta.enter_context(_NoInitialValues())
            on_meta.enter_context(without_compiler())
        yield


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None  # nobody reads it: they work in place
        return func(*args, **(kwargs or {}))


def ldm_models(config: Config, users: int, trains: bool, device: str) -> tuple[AutoencoderKL, UserDenoiser]:
    """The frozen VAE, and what works on its latents. Without numbers, one set of them serves every trace."""
    side = config.data.resolution // config.vae.downscale
    unet, encoder = replace(config.unet, sample_size=side), replace(config.user_encoder, num_users=users)
    return (_made_once if device == "meta" else _make)(config.vae, unet, encoder, trains, device)


def _make(
    vae: VAEConfig, unet: UNetConfig, encoder: UserEncoderConfig, trains: bool, device: str
) -> tuple[AutoencoderKL, UserDenoiser]:
    with built_on(device):
        autoencoder = AutoencoderKL(replace(vae, scaling_factor=1.0))
        model = UserDenoiser(UNet2DConditionModel(unet), UserConditionEncoder(encoder))
    return autoencoder.requires_grad_(False), model.requires_grad_(trains)


_made_once = lru_cache(maxsize=4)(_make)


def components(config: Config, stage: Stage, users: int) -> list[Component]:
    """What `stage` keeps on the card, on the meta device."""
    training = config.vae_training if stage == "vae" else config.ldm_training
    averaged, fused, half = not training.ema_on_cpu, training.optimizer.fused, training.mixed_precision != "no"
    if stage == "vae":
        with built_on("meta"):
            vae = AutoencoderKL(config.vae)
            parts = [Component("VAE", vae, tuple(vae.parameters()), averaged, fused, half)]
            if config.vae_loss.adversarial_weight:
                critic = PatchDiscriminator(config.vae.image_channels)
                parts.append(Component("discriminator", critic, tuple(critic.parameters()), fused=fused, half=half))
            if config.vae_loss.perceptual_weight:
                parts.append(Component("VGG16", VGG16Distance(), half=half))
        return parts
    vae, model = ldm_models(config, users, stage != "sample", "meta")
    if stage == "sample":
        return [Component("VAE", vae), Component("UNet", model.unet), Component("user encoder", model.user_encoder)]
    trained = {id(p) for p in model.trained_parameters()}
    parts = [Component("VAE", vae)]
    for name, part in (("UNet", model.unet), ("user encoder", model.user_encoder)):
        ours = tuple(p for p in part.parameters() if id(p) in trained)
        parts.append(Component(name, part, ours, averaged, fused, half))
    return parts


def without_effect(config: Config, parts: list[Component]) -> int:
    """Parameters of the UNet that its context leaves without effect: none, unless that is one token."""
    if config.user_encoder.tokens_per_user > 1:
        return 0
    unets = [part.module for part in parts if isinstance(part.module, UNet2DConditionModel)]
    return sum(p.numel() for unet in unets for p in unet.parameters_without_effect_on_one_token())
