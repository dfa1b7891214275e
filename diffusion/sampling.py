"""The one sampling loop, and which update rules there are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusion import ddim, ddpm, dpm_solver, euler, heun
from diffusion.guidance import Denoiser
from diffusion.prediction import Evaluation, to_x0_and_noise
from diffusion.schedule import CLEAN, Level, Schedule, Spacing, require_choice, timesteps

SamplerName = Literal["ddpm", "ddim", "dpm", "heun", "euler"]


@dataclass(frozen=True)
class SamplingConfig:
    """steps: updates; each is one network call, two with "heun" (but for its last). eta: only for "ddim".

    guidance: scale of classifier-free guidance; 1 is none. guidance_interval: (low, high) in sigma/alpha.
    """

    sampler: SamplerName = "dpm"
    steps: int = 20
    spacing: Spacing = "trailing"
    eta: float = 0.0
    guidance: float = 2.0
    guidance_interval: tuple[float, float] | None = None

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


@dataclass(frozen=True)
class Sampler:
    """An update rule: x <- step(x, now, to, previous, noise), then x <- correct(x, now, evaluation of x)."""

    step: Callable[[Tensor, Evaluation, Level, Evaluation | None, Tensor | None], Tensor]
    correct: Callable[[Tensor, Evaluation, Evaluation], Tensor] | None = None
    stochastic: bool = False
    # What alpha = 0 is taken to be. Euler and DPM-Solver++ work in sigma/alpha and its logarithm, infinite
    # there; 2^-12, diffusers' choice, keeps them finite and is too little for a network to tell from 0.
    terminal_alpha: float = 0.0


SAMPLERS: dict[str, Callable[[SamplingConfig], Sampler]] = {
    "ddpm": lambda config: Sampler(ddpm.step, stochastic=True),
    "ddim": lambda config: Sampler(partial(ddim.step, eta=config.eta), stochastic=config.eta > 0),
    "dpm": lambda config: Sampler(dpm_solver.step, terminal_alpha=2**-12),
    "heun": lambda config: Sampler(euler.step, correct=heun.correct),
    "euler": lambda config: Sampler(euler.step, terminal_alpha=2**-12),
}


def integrate(
    evaluate: Callable[[Tensor, Level], Evaluation],
    x: Tensor,
    levels: list[Level],
    sampler: Sampler,
    draw_noise: Callable[[], Tensor],
    wrap: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Take x (B, ...) from levels[0] down to levels[-1]; `wrap` may show progress (tqdm)."""
    previous = None
    for level, to in wrap(list(pairwise(levels))):
        now = evaluate(x, level)
        noise = draw_noise() if sampler.stochastic and to.sigma > 0 else None
        x = sampler.step(x, now, to, previous, noise)
        if sampler.correct and to.sigma > 0:
            x = sampler.correct(x, now, evaluate(x, to))
        previous = now
    return x


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    config: SamplingConfig,
    draw_noise: Callable[[], Tensor],
    wrap: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """From standard normal x (B, ...) to x0 (B, ...), unclipped, in x's precision whatever the network's.

    draw_noise() -> standard normal, shaped like x; only stochastic samplers call it, once a step but for the
    last. Let each image draw from a generator of its own, and it is the same image whatever the batch.
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
    return integrate(evaluate, x, [*levels, CLEAN], sampler, draw_noise, wrap)
