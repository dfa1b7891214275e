"""The sampling loop, and the table of samplers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusion import samplers
from diffusion.guidance import Denoiser
from diffusion.prediction import Evaluation, to_x0_and_noise
from diffusion.schedule import CLEAN, Level, Schedule, Spacing, require_choice, timesteps

SamplerName = Literal["ddpm", "ddim", "dpm", "heun", "euler"]


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampler.

    steps: number of updates, each with one network call; with "heun" two, except in the last. eta: only for "ddim".
    guidance: scale of classifier-free guidance; 1 is none. guidance_interval: (low, high) in sigma/alpha.
    mix_above: sigma/alpha above which an image follows the condition of another one; None: never.
    """

    sampler: SamplerName = "dpm"
    steps: int = 20
    spacing: Spacing = "trailing"
    eta: float = 0.0
    guidance: float = 2.0
    guidance_interval: tuple[float, float] | None = None
    mix_above: float | None = None

    def __post_init__(self) -> None:
        require_choice("sampler", self.sampler, SamplerName)
        require_choice("spacing", self.spacing, Spacing)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be from 0 to 1")
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, which only the sampler ddim uses, not {self.sampler}")
        if not 0 <= self.guidance <= 1000:
            raise ValueError(f"guidance is {self.guidance}; it must be from 0 to 1000")
        low, high = self.guidance_interval or (0, 1)
        if not 0 <= low < high:
            raise ValueError(f"guidance_interval is {self.guidance_interval}; it must be 0 <= low < high")
        if self.mix_above is not None and not self.mix_above > 0:
            raise ValueError(f"mix_above is {self.mix_above}; it must be positive")


@dataclass(frozen=True)
class Sampler:
    """An update rule: x <- step(x, now, to, previous, noise), then x <- correct(x, now, evaluation of x)."""

    step: Callable[[Tensor, Evaluation, Level, Evaluation | None, Tensor | None], Tensor]
    correct: Callable[[Tensor, Evaluation, Evaluation], Tensor] | None = None
    stochastic: bool = False
    terminal_alpha: float = 0.0
    """Replaces an alpha of 0. Euler and DPM-Solver++ work in sigma/alpha and its logarithm, which are infinite there;
    2^-12, the choice of diffusers, keeps them finite, and a network cannot tell it from 0."""


AfterStep = Callable[[int, Tensor, Evaluation], None]
"""Called after each step, counted from 1, with the new x (B, ...) and the evaluation from which it was made."""

SAMPLERS: dict[str, Callable[[SamplingConfig], Sampler]] = {
    "ddpm": lambda config: Sampler(samplers.ddpm, stochastic=True),
    "ddim": lambda config: Sampler(partial(samplers.ddim, eta=config.eta), stochastic=config.eta > 0),
    "dpm": lambda config: Sampler(samplers.dpm_solver, terminal_alpha=2**-12),
    "heun": lambda config: Sampler(samplers.euler, correct=samplers.correct_by_heun),
    "euler": lambda config: Sampler(samplers.euler, terminal_alpha=2**-12),
}


def integrate(
    evaluate: Callable[[Tensor, Level], Evaluation],
    x: Tensor,
    levels: list[Level],
    sampler: Sampler,
    draw_noise: Callable[[], Tensor],
    after_step: AfterStep | None = None,
) -> Tensor:
    """Take x (B, ...) from levels[0] to levels[-1]."""
    previous = None
    for step, (level, to) in enumerate(pairwise(levels), 1):
        now = evaluate(x, level)
        noise = draw_noise() if sampler.stochastic and to.sigma > 0 else None
        x = sampler.step(x, now, to, previous, noise)
        if sampler.correct and to.sigma > 0:
            x = sampler.correct(x, now, evaluate(x, to))
        if after_step:
            after_step(step, x, now)
        previous = now
    return x


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    config: SamplingConfig,
    draw_noise: Callable[[], Tensor],
    after_step: AfterStep | None = None,
) -> Tensor:
    """From standard normal x (B, ...) to x0 (B, ...), not clipped, computed in the precision of x.

    draw_noise() -> standard normal, shaped like x; only stochastic samplers call it, in each step but the last. If each
    image has its own generator, it does not depend on the batch.
    """
    sampler = SAMPLERS[config.sampler](config)

    def evaluate(x: Tensor, level: Level) -> Evaluation:
        output = denoiser(x, level).to(x.dtype)
        estimates = to_x0_and_noise(schedule.config.prediction, output, x, level.alpha, level.sigma)
        return Evaluation(level, *estimates)

    ts = timesteps(schedule.config.num_train_timesteps, config.steps, config.spacing)
    levels = [schedule.level(t) for t in ts]
    if levels[0].alpha == 0:
        alpha = sampler.terminal_alpha
        levels[0] = Level(levels[0].t, alpha, (1 - alpha**2) ** 0.5)
    return integrate(evaluate, x, [*levels, CLEAN], sampler, draw_noise, after_step)
