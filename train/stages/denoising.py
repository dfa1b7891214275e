"""What the LDM stage trains, and its loss on one window of samples.

Shapes: B batch, Z h w latents, L context tokens, D their width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.loss import Draws, LossConfig, diffusion_loss, draw
from diffusion.schedule import Schedule
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel


class UserDenoiser(nn.Module):
    """The UNet, and the encoder that turns a user into its context."""

    def __init__(self, unet: UNet2DConditionModel, user_encoder: UserConditionEncoder):
        super().__init__()
        self.unet = unet
        self.user_encoder = user_encoder

    def trained_parameters(self) -> list[nn.Parameter]:
        """All but those that one context token leaves without effect: no gradient, no optimizer state."""
        one_token = self.user_encoder.config.tokens_per_user == 1
        idle = {id(p) for p in self.unet.parameters_without_effect_on_one_token()} if one_token else set()
        return [p for p in self.parameters() if id(p) not in idle]


@dataclass(frozen=True, eq=False)
class WindowDraws:
    """All the chance in one window of B samples; its slices serve the micro-batches."""

    diffusion: Draws
    posterior: Tensor  # (B, Z, h, w) standard normal: which of an image's latents
    keep: Tensor | None  # (B, L*D) bool: the components of the condition that dropout leaves; None: all

    def __getitem__(self, part: slice) -> "WindowDraws":
        return WindowDraws(self.diffusion[part], self.posterior[part], None if self.keep is None else self.keep[part])


def draw_training_window(
    shape: tuple[int, ...], timesteps: int, condition_dropout: float, user_encoder: UserConditionEncoder,
    chance: torch.Generator, device: torch.device,
) -> WindowDraws:  # fmt: skip
    """Draws to learn from latents of this shape (B, Z, h, w)."""
    diffusion = draw(shape, timesteps, condition_dropout, chance, device)
    posterior = torch.randn(shape, generator=chance).to(device)
    return WindowDraws(diffusion, posterior, user_encoder.draw_keep(shape[0], chance).to(device))


def draw_validation_window(
    shape: tuple[int, ...], timesteps: int, chance: torch.Generator, device: torch.device
) -> WindowDraws:
    """The same to measure by: nothing of the condition is dropped."""
    diffusion = draw(shape, timesteps, 0.0, chance, device)
    return WindowDraws(diffusion, torch.randn(shape, generator=chance).to(device), keep=None)


def denoising_loss(
    model: UserDenoiser, schedule: Schedule, config: LossConfig, latents: Tensor, users: Tensor, draws: WindowDraws
) -> Tensor:
    """The diffusion loss (B,) of scaled latents (B, Z, h, w) of users (B,)."""
    condition = model.user_encoder(users, draws.diffusion.dropped, draws.keep)  # B L D
    return diffusion_loss(model.unet, schedule, config, latents, condition, draws.diffusion.t, draws.diffusion.noise)
