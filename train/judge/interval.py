"""Means with intervals: how far a figure would move with other seeds, and with other recordings to test on.

S seeds, N test images. Two sources of chance add up (Satterthwaite, Biometrics Bulletin 2 (1946) 110): the variance
between seeds, divided by S, and the variance between the held-out recordings, whose images go right or wrong together.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CONFIDENCE = 0.95
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # of the integral over Student's density


@dataclass(frozen=True)
class Figure:
    mean: float
    low: float
    high: float
    seeds: list[float]


@dataclass(frozen=True)
class Variance:
    """An estimate of a variance between seeds."""

    value: float
    freedom: int
    """Degrees of freedom: of its own from S seeds S - 1, of the mean of several such estimates their sum."""


def between_seeds(values: Tensor) -> Variance:
    """Of the mean over images, (S, N)."""
    by_seed = values.double().mean(1)
    return Variance(float(by_seed.var()) if len(by_seed) > 1 else 0.0, max(len(by_seed) - 1, 1))


def over_recordings(
    values: Tensor, recordings: Tensor, comparisons: int = 1, seeds: Variance | None = None, least: float = 0.0
) -> Figure:
    """The mean of `values` (S, N), from `least` to 1, over test images, whose `recordings` (N,) are numbers.

    With several `comparisons`, all of their intervals hold at once with 95% (Bonferroni). The variance between `seeds`
    is that of the values themselves, unless a better estimate is given.
    """
    by_seed, images = values.double().mean(1), values.shape[1]
    mean = float(by_seed.mean())
    chance = seeds or between_seeds(values)
    of_seeds = chance.value / len(by_seed)
    deviation = values.double().mean(0) - mean  # N
    sums = torch.zeros(int(recordings.max()) + 1, dtype=torch.float64).index_add_(0, recordings, deviation)
    number = len(recordings.unique())
    of_recordings = float(sums.square().sum()) / images**2 * number / max(number - 1, 1)
    variance = of_seeds + of_recordings
    parts = of_seeds**2 / chance.freedom + of_recordings**2 / max(number - 1, 1)
    freedom = variance**2 / parts if parts else 1.0
    half = student_quantile(1 - (1 - CONFIDENCE) / 2 / comparisons, freedom) * math.sqrt(variance)
    return Figure(mean, max(mean - half, least), min(mean + half, 1.0), by_seed.tolist())


def over_seeds(values: list[float]) -> Figure:
    """The mean of a figure that is one number for each seed."""
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    half = student_quantile(0.5 + CONFIDENCE / 2, max(len(values) - 1, 1)) * error
    return Figure(mean, mean - half, mean + half, [float(value) for value in values])


def student_quantile(p: float, freedom: float) -> float:
    """The p-quantile, 0.5 <= p < 1, of Student's t distribution with any positive number of degrees of freedom.

    With t = sqrt(freedom) tan(a), the probability between 0 and t is the integral of cos(a)^(freedom - 1).
    """
    # A few million degrees of freedom are the normal distribution, to which more digits add nothing.
    freedom = min(freedom, 1e6)
    logarithm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)

    def probability(t: float) -> float:
        a = math.atan(t / math.sqrt(freedom)) / 2
        density = np.exp(logarithm + (freedom - 1) * np.log(np.cos(a * (NODES + 1)))) / math.sqrt(math.pi)
        return 0.5 + a * float(WEIGHTS @ density)

    low, high = 0.0, 1.0
    while probability(high) < p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < p else (low, middle)
    return high
