"""Heun's method (Karras et al. 2022, algorithm 1, without churn): Euler's step, then this correction."""

from torch import Tensor

from diffusion.prediction import Evaluation


def correct(x: Tensor, now: Evaluation, predicted: Evaluation) -> Tensor:
    """Use the mean of the slopes at both ends of the step instead of the first one alone: second order.

    x: (B, ...), Euler's result. now, predicted: the evaluations at the step's start and at x.
    """
    start, end = now.level, predicted.level
    # The trapezoid in sigma/alpha is meaningless where that is (nearly) infinite, which is at a terminal SNR
    # of (nearly) zero: it would multiply a small difference of slopes by thousands. Keep Euler's step there;
    # it is one step, whose own error is already of second order in the end's alpha.
    if start.alpha < 1e-3:
        return x
    ratio_step = end.noise_ratio - start.noise_ratio
    return x + end.alpha * ratio_step * (predicted.noise - now.noise) / 2
