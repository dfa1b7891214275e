"""What a network's output means: noise, x0 or velocity, and every conversion between them, in this one place.

With x_t = alpha x_0 + sigma noise, alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, section 4 and appendix D).
alpha and sigma are floats, or tensors that broadcast with x (B, ...).
"""

from typing import NamedTuple

from torch import Tensor

from diffusion.schedule import Level, Prediction


class Evaluation(NamedTuple):
    """One call of the network: at `level`, its estimates of x0 and of the noise, each shaped like x."""

    level: Level
    x0: Tensor
    noise: Tensor


def target(prediction: Prediction, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should put out for x_t = alpha x_0 + sigma noise."""
    if prediction == "noise":
        return noise
    if prediction == "x0":
        return x0
    return alpha * noise - sigma * x0  # v


def to_x0_and_noise(
    prediction: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The estimates of x0 and of the noise that `output` means; together they give back x_t exactly.

    A noise output needs alpha > 0 and an x0 output sigma > 0; a velocity needs neither.
    """
    if prediction == "noise":
        return (x_t - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x_t - alpha * output) / sigma
    return alpha * x_t - sigma * output, sigma * x_t + alpha * output
