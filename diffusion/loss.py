"""The training loss, its weighting over noise levels, and the random numbers that it needs.

t, noise and dropped conditions are drawn from a given generator, once for a whole optimizer step, and then sliced, so
that splitting a batch into micro-batches changes no number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.prediction import target
from diffusion.schedule import Schedule, require_choice

Weighting = Literal["none", "min_snr"]


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss.

    condition_dropout: probability that a sample trains without its condition, as guidance needs.
    """

    weighting: Weighting = "none"
    min_snr_gamma: float = 5.0
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        require_choice("weighting", self.weighting, Weighting)
        if not self.min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma}; it must be positive")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout is {self.condition_dropout}; it must be from 0 to 1")


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of B training samples; slice it like the batch."""

    t: Tensor  # (B,) int64, uniform over the timesteps
    noise: Tensor  # (B, C, H, W) float32
    dropped: Tensor  # (B,) bool; True: this sample trains with the unconditional condition

    def __getitem__(self, rows: slice) -> "Draws":
        return Draws(self.t[rows], self.noise[rows], self.dropped[rows])


def draw(
    shape: tuple[int, ...],
    num_train_timesteps: int,
    condition_dropout: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Draws:
    """Draws for a batch of this shape (B, C, H, W), made on the generator's device and then moved to `device`.

    A CPU generator thus gives the same numbers on every device.
    """
    B, origin = shape[0], generator.device
    t = torch.randint(num_train_timesteps, (B,), generator=generator, device=origin)
    noise = torch.randn(shape, generator=generator, device=origin)
    dropped = drop_condition(B, condition_dropout, generator, device)
    return Draws(t.to(device), noise.to(device), dropped)


def drop_condition(
    batch_size: int, probability: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Mask (B,) of the samples that train without their condition (Ho & Salimans 2022, algorithm 1)."""
    return (torch.rand(batch_size, generator=generator, device=generator.device) < probability).to(device)


def loss_weight(schedule: Schedule, t: Tensor, weighting: Weighting, gamma: float) -> Tensor:
    """The factor of the squared error of the network's output at timesteps t: (B,) float32.

    "none" is 1. "min_snr" (Hang et al. 2023, section 3.4) weights the squared error *of x0* by min(SNR, gamma), for
    every prediction type. An error e of x0 is an error sqrt(SNR) e of the noise and sqrt(SNR + 1) e of the velocity, so
    the factor is divided by SNR or SNR + 1. At zero terminal SNR it is 0: nothing is learned at the last timestep.
    """
    if weighting == "none":
        return torch.ones(t.shape, device=t.device)
    snr = schedule.log_snr.exp()
    unit = {"noise": snr, "x0": torch.ones_like(snr), "velocity": snr + 1}[schedule.config.prediction]
    return (snr.clamp(max=gamma) / unit).float().to(t.device)[t]


def diffusion_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: Schedule,
    config: LossConfig,
    x0: Tensor,
    condition: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """Weighted mean squared error of the network's output (DDPM, Ho et al. 2020, eq. 14), per sample.

    network(x_t, t, condition) -> output shaped like x0. x0, noise: (B, C, H, W). t: (B,). Dropped conditions are
    already replaced in `condition`. Returns (B,) float32, the means over C, H, W; the caller takes the mean over B,
    possibly over several micro-batches.
    """
    alpha, sigma = schedule.coefficients(t, x0)
    x_t = schedule.add_noise(x0, noise, t)
    output = network(x_t, t, condition)
    # The difference is float32 whatever the network's precision.
    error = output.float() - target(schedule.config.prediction, x0.float(), noise.float(), alpha, sigma)
    weight = loss_weight(schedule, t, config.weighting, config.min_snr_gamma)
    return weight * error.square().flatten(1).mean(1)
