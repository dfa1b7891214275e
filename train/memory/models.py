"""The models of a scenario: the training's own stage on a blank image, on the meta device or another.

On torch's meta device models have shapes and dtypes, but no memory and no values, and are built almost at once.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL
from train.data.dataset import UserImages
from train.engine.stage import Stage
from train.memory.scenario import Scenario
from train.stages.ldm import LDMStage
from train.stages.vae import VAEStage


@contextmanager
def built_on(device: str) -> Iterator[None]:
    """Build models on this device inside the context; on the meta device, skip the initialisation of weights."""
    with (
        torch.device(device), torch.random.fork_rng(devices=[]),
        _NoInitialValues() if device == "meta" else nullcontext(),
    ):  # fmt: skip
        yield


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None  # the functions of nn.init work in place, and their result is not used
        return func(*args, **(kwargs or {}))


class _BlankImages(UserImages):
    """Returns zeros without reading pixels: on the meta device only shapes matter."""

    def batch(self, indices: Tensor, mirror: Tensor | None = None, upend: Tensor | None = None) -> Tensor:
        return torch.zeros(len(indices), *self.images.shape[1:])


def blank_stage(scenario: Scenario) -> Stage:
    """The stage with its models on the scenario's device and a data set of one black image."""
    if scenario.device != "meta":
        return _build(scenario)
    stage = copy.copy(_built_once(scenario.models_only()))  # meta models have no values, so every trace can share them
    stage.config = scenario.config
    if getattr(stage, "adversary", None):
        stage.adversary = copy.copy(stage.adversary)
    return stage


def _build(scenario: Scenario) -> Stage:
    config, is_vae = scenario.config, scenario.stage == "vae"
    pixels = torch.zeros(1, *config.image_shape, dtype=torch.uint8)
    images = _BlankImages if scenario.device == "meta" else UserImages
    data = images(pixels, torch.zeros(1, dtype=torch.int64), [""] * scenario.users, ["blank"])
    with built_on(scenario.device):
        vae = AutoencoderKL(replace(config.vae, scaling_factor=1.0))
        vgg16 = VGG16Distance() if is_vae and config.vae_loss.perceptual_weight else None
    stage = VAEStage(config, data, vae, vgg16) if is_vae else LDMStage(config, data, vae.requires_grad_(False))
    with built_on(scenario.device):
        stage.build(torch.device(scenario.device), "no")
    stage.model.requires_grad_(scenario.trains)
    return stage


_built_once = lru_cache(maxsize=4)(_build)


def parts_of(stage: Stage) -> dict[str, nn.Module]:
    """The models of a stage, by the component names of the account."""
    if isinstance(stage, LDMStage):
        return {"VAE": stage.vae, "UNet": stage.model.unet, "user encoder": stage.model.user_encoder}
    discriminator = stage.adversary and stage.adversary.discriminator
    found = {"VAE": stage.model, "discriminator": discriminator, "VGG16": stage.vgg16}
    return {name: part for name, part in found.items() if part}
