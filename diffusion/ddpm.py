"""DDPM: ancestral sampling (Ho et al. 2020), over any subsequence of the timesteps."""

from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Level


def step(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """Draw x_s from the posterior q(x_s | x_t, x_0) with x_0 estimated (eqs. 6, 7), variance "fixed small".

    x: (B, ...), x_t at now.level. noise: standard normal, shaped like x; unused (None) in the step to clean
    data.
    """
    t = now.level
    abar_t, abar_s = t.alpha**2, to.alpha**2
    alpha = abar_t / abar_s  # the paper's alpha_t, for a step from s to t
    beta = 1 - alpha
    mean = (to.alpha * beta * now.x0 + alpha**0.5 * to.sigma**2 * x) / t.sigma**2
    variance = beta * (to.sigma / t.sigma) ** 2
    return mean if noise is None else mean + variance**0.5 * noise
