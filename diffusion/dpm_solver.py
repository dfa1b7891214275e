"""DPM-Solver++(2M): second order with one network call a step (Lu et al. 2022b, algorithm 2)."""

from torch import Tensor

from diffusion.prediction import Evaluation
from diffusion.schedule import Level


def step(x: Tensor, now: Evaluation, to: Level, previous: Evaluation | None, noise: Tensor | None) -> Tensor:
    """x: (B, ...). Without a previous evaluation, and in the step to clean data, it is of first order: DDIM.

    The paper's -alpha_t (exp(-h) - 1) is `weight` here, which stays finite at both ends of the schedule.
    """
    ratio = to.sigma / now.level.sigma
    weight = to.alpha - now.level.alpha * ratio
    D = now.x0
    if previous is not None and to.sigma > 0:
        # The paper's h are differences of lambda = log_snr / 2; only their ratio r matters.
        h_previous = now.level.log_snr - previous.level.log_snr
        h = to.log_snr - now.level.log_snr
        r = h_previous / h
        D = now.x0 + (now.x0 - previous.x0) / (2 * r)
    return ratio * x + weight * D
