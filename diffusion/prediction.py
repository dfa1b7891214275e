"""The meanings of a network's output (noise, x0 or velocity) and the conversions between them.

x_t = alpha x_0 + sigma noise with alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, section 4 and appendix D).
alpha and sigma are floats, or tensors that broadcast with x (B, ...).
"""

from typing import NamedTuple

from torch import Tensor

from diffusion.schedule import Level, Prediction


class Evaluation(NamedTuple):
    """The result of one network call at `level`: its estimates of x0 and of the noise, each shaped like x."""

    level: Level
    x0: Tensor
    noise: Tensor


def target(prediction: Prediction, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output that the network should have for x_t = alpha x_0 + sigma noise."""
    if prediction == "noise":
        return noise
    if prediction == "x0":
        return x0
    return alpha * noise - sigma * x0  # v


def to_x0_and_noise(
    prediction: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The estimates of x0 and of the noise that follow from `output`; alpha x0 + sigma noise is exactly x_t.

    A noise output needs alpha > 0 and an x0 output sigma > 0; a velocity needs neither.
    """
    if prediction == "noise":
        return (x_t - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x_t - alpha * output) / sigma
    return alpha * x_t - sigma * output, sigma * x_t + alpha * output
