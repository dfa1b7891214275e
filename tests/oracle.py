"""The models of `diffusers` with the settings of ours, and the comparison that the parity tests make."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from torch import Tensor, nn

from nets.unet import UNet2DConditionModel, UNetConfig
from nets.vae import AutoencoderKL, VAEConfig
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers

PRESETS = {
    "medium": (UNetConfig((128, 256, 512, 512), (True, True, True, False), 512), 139_680_132),
    "tight": (UNetConfig((128, 256, 512, 512), (True, True, True, False), 256), 137_124_228),
    "light": (UNetConfig((64, 128, 256, 384), (True, True, True, False), 256), 50_165_060),
    "sd": (UNetConfig((320, 640, 1280, 1280), (True, True, True, False), 768), 859_520_964),
    "sd15": (
        UNetConfig((320, 640, 1280, 1280), (True, True, True, False), 768, linear_projection=False), 859_520_964
    ),
}  # fmt: skip
VAE_PRESETS = {
    "ours": (VAEConfig((128, 256, 512)), 42_928_871),
    "sd15": (VAEConfig((128, 256, 512, 512), layers_per_block=2, scaling_factor=0.18215), 83_653_863),
}


def diffusers_unet(config: UNetConfig) -> nn.Module:
    return diffusers.UNet2DConditionModel(**json.loads(json.dumps(unet_to_diffusers(config))))


def diffusers_vae(config: VAEConfig) -> nn.Module:
    return diffusers.AutoencoderKL(**json.loads(json.dumps(vae_to_diffusers(config))))


def unet_pair(config: UNetConfig) -> tuple[UNet2DConditionModel, nn.Module]:
    """Ours and theirs with the same random weights, large enough that no term is lost in rounding."""
    torch.manual_seed(0)
    ours, theirs = UNet2DConditionModel(config), diffusers_unet(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def vae_pair(config: VAEConfig) -> tuple[AutoencoderKL, nn.Module]:
    torch.manual_seed(0)
    ours, theirs = AutoencoderKL(config), diffusers_vae(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def assert_equal_outputs(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-10 of the largest value, in float64: a million roundings."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def assert_equal_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Every parameter's gradient to 1e-9 of its norm, in float64.

    Where the gradient is exactly zero by algebra (queries and keys over one context token) ours is absent
    and theirs may be rounding: both must then be nothing beside the whole gradient.
    """
    total = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = reference[name].grad
        if parameter.grad is None:
            assert expected.norm() <= 1e-12 * total, f"{name} has no gradient here, but one in the oracle"
        else:
            error = (parameter.grad - expected).norm()
            assert error <= 1e-9 * expected.norm() + 1e-12 * total, f"{name}: {error / expected.norm():.1e}"
