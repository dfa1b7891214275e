"""The models of `diffusers` in the place of ours, with our weights: all else of a stage is the same code.

Shapes: B batch, Z h w latents, I image channels, H W image.
"""

import copy
import os
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor, nn

from nets.denoiser import UserDenoiser
from nets.vae import DiagonalGaussian
from train.base.optional import optional
from train.engine.stage import Stage
from train.engine.step import make_learner
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers
from train.stages.ldm import LDMStage


def diffusers_here() -> ModuleType | None:
    """Only the bench and the tests use it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # download nothing
    return optional("diffusers", "diffusers")


class TheirUNet(nn.Module):
    """The UNet of `diffusers`, called as ours is."""

    def __init__(self, unet: nn.Module, condition_in_time_embedding: bool):
        super().__init__()
        self.unet, self.condition_in_time_embedding = unet, condition_in_time_embedding

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        labels = context.mean(dim=1) if self.condition_in_time_embedding else None
        return self.unet(x, t, context, class_labels=labels).sample


class TheirVAE(nn.Module):
    """The VAE of `diffusers`, called as ours is."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae, self.decoder = vae, vae.decoder

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.vae.encode(x).latent_dist.parameters)

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample


def their_model(stage: Stage, diffusers: ModuleType) -> nn.Module:
    """The model that the stage trains, out of `diffusers`."""
    ours = stage.model
    with torch.random.fork_rng(devices=[]):
        if isinstance(stage, LDMStage):
            unet = diffusers.UNet2DConditionModel(**unet_to_diffusers(ours.unet.config)).to(stage.device)
            unet.load_state_dict(ours.unet.state_dict())
            if stage.training.gradient_checkpointing:
                unet.enable_gradient_checkpointing()
            theirs = TheirUNet(unet, ours.unet.config.condition_in_time_embedding)
            return UserDenoiser(theirs, copy.deepcopy(ours.user_encoder))
        vae = diffusers.AutoencoderKL(**vae_to_diffusers(ours.config)).to(stage.device)
        vae.load_state_dict(ours.state_dict())
        if stage.training.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        return TheirVAE(vae)


BLOCKS = {"ResnetBlock2D", "Transformer2DModel", "Attention"}  # which ours, compiled one by one, correspond to


def compile_theirs(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ in BLOCKS:
            module.compile(dynamic=False)


def their_stage(stage: Stage, diffusers: ModuleType, precision: str) -> Stage:
    """The stage with their model, and with torch's own choice of AdamW."""
    other = copy.copy(stage)
    other.model = their_model(stage, diffusers)
    if stage.training.compile:
        compile_theirs(other.model)
    optim = replace(stage.training.optimizer, fused=False)
    other.learner = make_learner(list(other.model.parameters()), optim, False, stage.device, precision, lean=False)
    return other
