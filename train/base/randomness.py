"""Where chance comes from: every draw is a function of (seed, stream, step), and nothing has to be saved.

A run that is stopped and resumed, or cut into other micro-batches, therefore draws the same numbers.
"""

import math

import numpy as np
import torch
from torch import Tensor

# One stream for each use, so that two uses never share their numbers.
STREAMS = ("weights", "order", "draws", "validation", "images", "classifier")


def generator(seed: int, stream: str, *position: int) -> torch.Generator:
    """A CPU generator that depends on these numbers only; each of `seed` and `position` is 0 or more."""
    entropy = np.random.SeedSequence([seed, STREAMS.index(stream), *position])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def windows_per_epoch(samples: int, window: int) -> int:
    """Optimizer steps in an epoch of this many samples; the last window may be short."""
    return math.ceil(samples / window)


def window_rows(seed: int, step: int, samples: int, window: int) -> Tensor:
    """Which samples (at most `window` of them, int64) optimizer step `step`, counted from 0, learns from.

    Each epoch visits every sample once, in an order of its own.
    """
    epoch, position = divmod(step, windows_per_epoch(samples, window))
    order = torch.randperm(samples, generator=generator(seed, "order", epoch))
    return order[position * window : (position + 1) * window]
