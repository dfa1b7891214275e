"""The noise schedule: immutable float64 tables over the T training timesteps.

It is variance preserving: x_t = alpha_t x_0 + sigma_t noise with alpha_t^2 + sigma_t^2 = 1. Timestep t runs from 0
(least noise) to T-1. `alpha` is the factor of x_0 (Salimans & Ho 2022); the alpha-bar of DDPM is its square.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

ScheduleKind = Literal["linear", "scaled_linear", "cosine"]
Prediction = Literal["noise", "x0", "velocity"]
Spacing = Literal["leading", "trailing", "linspace"]


# Of alpha-bar: less is lost in float32, in which images are noised, and x0 and noise are told apart.
LEAST_NOISE, LEAST_SIGNAL = 1e-9, 1e-60


def require_choice(name: str, value: str, literal: object) -> None:
    """Raise ValueError unless `value` is one of the values of a Literal."""
    if value not in get_args(literal):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(get_args(literal))}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the schedule.

    kind: named as in diffusers; LDM's code calls `scaled_linear` "linear".
    beta_start, beta_end: betas of the first and the last timestep; "cosine" does not use them.
    zero_terminal_snr: make the last timestep pure noise (Lin et al. 2023).
    prediction: the meaning of the network's output; it is kept here because zero_terminal_snr excludes "noise".
    """

    kind: ScheduleKind = "scaled_linear"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    prediction: Prediction = "noise"

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, ScheduleKind)
        require_choice("prediction", self.prediction, Prediction)
        least = 2 if self.zero_terminal_snr else 1
        if not least <= self.num_train_timesteps <= 10**6:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}; it must be from {least} to 1000000")
        start, end = self.beta_start, self.beta_end
        if not 0 < start <= end < 1:
            raise ValueError(f"betas are {start} and {end}; they must be 0 < beta_start <= beta_end < 1")
        if self.zero_terminal_snr and self.prediction == "noise":
            raise ValueError(
                "noise prediction with zero_terminal_snr makes x0 0/0 at the last timestep; "
                "predict velocity or x0 instead"
            )
        most, least = _ends(self)
        if not (most < 1 - LEAST_NOISE and least > LEAST_SIGNAL):
            raise ValueError(
                f"beta_start {start}, beta_end {end} and num_train_timesteps {self.num_train_timesteps} make alpha-bar "
                f"fall from {most:.3g} to {least:.3g}; it must start below 1 and end above 0 by more than rounding"
            )


class Level(NamedTuple):
    """A noise level: timestep `t` (-1 for clean data), and alpha, sigma as Python floats (float64)."""

    t: int
    alpha: float
    sigma: float

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha, the sigma of Karras et al. 2022; inf at zero SNR."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2), twice DPM-Solver's lambda; -inf at zero SNR, inf for clean data."""
        return -2 * math.log(self.noise_ratio) if self.sigma > 0 else math.inf


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Five float64 CPU tables of shape (T,), indexed by timestep; made by `make_schedule`."""

    config: ScheduleConfig
    betas: Tensor
    alphas_cumprod: Tensor  # alpha-bar of DDPM
    alpha: Tensor  # sqrt(alpha-bar)
    sigma: Tensor  # sqrt(1 - alpha-bar)
    log_snr: Tensor  # log(alpha^2 / sigma^2), -inf at zero terminal SNR

    def level(self, t: int) -> Level:
        return Level(t, float(self.alpha[t]), float(self.sigma[t]))

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps t (B,), shaped (B, 1, ...) to broadcast with `like` (B, ...).

        They are float32 also if `like` is half precision: in fp16 an alpha-bar of 0.9999 is 1, and its sigma 0.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = (table.to(like.device, dtype)[t].view(shape) for table in (self.alpha, self.sigma))
        return alpha, sigma

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise (DDPM, Ho et al. 2020, eq. 4); float32 for half-precision x0.

        x0, noise: (B, ...). t: (B,) integers. Returns (B, ...).
        """
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise


def make_schedule(config: ScheduleConfig) -> Schedule:
    betas = _betas(config)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if config.zero_terminal_snr:
        # Lin et al. 2023, algorithm 1: shift alpha so that it ends at 0, then scale it to start as before.
        alpha = alphas_cumprod.sqrt()
        alphas_cumprod = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    return Schedule(
        config=config,
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        alpha=alphas_cumprod.sqrt(),
        sigma=(1 - alphas_cumprod).sqrt(),
        log_snr=torch.log(alphas_cumprod) - torch.log1p(-alphas_cumprod),
    )


def _betas(config: ScheduleConfig) -> Tensor:
    T = config.num_train_timesteps
    start, end = config.beta_start, config.beta_end
    if config.kind == "linear":  # Ho et al. 2020
        return torch.linspace(start, end, T, dtype=torch.float64)
    if config.kind == "scaled_linear":  # Rombach et al. 2022
        return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
    # Nichol & Dhariwal 2021, eq. 17; betas are at most 0.999, since the last one would be 1.
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _ends(config: ScheduleConfig) -> tuple[float, float]:
    """alpha-bar at the first and at the last timestep, before any rescaling."""
    alphas_cumprod = torch.cumprod(1 - _betas(config), dim=0)
    return float(alphas_cumprod[0]), float(alphas_cumprod[-1])


def timesteps(num_train_timesteps: int, steps: int, spacing: Spacing) -> list[int]:
    """The `steps` decreasing timesteps at which a sampler calls the network (Lin et al. 2023, table 2).

    For 10 steps of 1000: trailing 999, 899 ... 99; linspace 999, 888 ... 0; leading 900, 800 ... 0. Only the first two
    start from the noisiest level. After the last timestep every sampler steps to clean data.

    This is the convention of diffusers' DDPM and DDIM (with steps_offset=0). Its DPM-Solver divides "leading" and
    "linspace" into steps + 1 and omits timestep 0; its Euler and Heun do not round "linspace".
    """
    require_choice("spacing", spacing, Spacing)
    T = num_train_timesteps
    if not 1 <= steps <= T:
        raise ValueError(f"steps is {steps}; it must be from 1 to the {T} training timesteps")
    if spacing == "trailing":
        # [:steps]: rounding of T / steps may give arange one timestep too many, -1 (in diffusers too).
        ts = np.arange(T, 0, -T / steps)[:steps].round() - 1
    elif spacing == "linspace":
        ts = np.linspace(0, T - 1, steps).round()[::-1]
    else:
        ts = np.arange(steps)[::-1] * (T // steps)
    if ts[0] == 0 and T > 1:
        raise ValueError(f"one step with spacing {spacing} would start at timestep 0, the least noisy one")
    return [int(t) for t in ts]
