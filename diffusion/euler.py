"""Euler's method on the probability-flow ODE in the coordinates of Karras et al. 2022."""

from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Level


def step(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """x: (B, ...). The ODE is d(x/alpha) / d(sigma/alpha) = noise estimate (Karras et al. 2022, eq. 1).

    Euler's step x/alpha + (new ratio - ratio) * noise has x/alpha = x0 + ratio * noise in it, so it is x0 +
    (new ratio) * noise. Written so, two large numbers need not cancel near zero SNR; and one sees that it is
    DDIM with eta = 0 (Song et al. 2021, eq. 14).
    """
    return to.alpha * now.x0 + to.sigma * now.noise
