"""Random numbers as functions of (seed, use, step): a run resumed, or in other micro-batches, draws the same ones."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# One stream for each use, so that two uses never share their numbers.
STREAMS = ("weights", "order", "draws", "validation", "images", "judge", "halves", "mix")


def generator(seed: int, stream: str, *position: int) -> torch.Generator:
    """A CPU generator that depends only on these arguments; `seed` and every `position` are 0 or more."""
    entropy = np.random.SeedSequence([seed, STREAMS.index(stream), *position])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def steps_per_epoch(samples: int, batch: int) -> int:
    """Optimizer steps in an epoch of this many samples; the last batch may be short."""
    return math.ceil(samples / batch)


@lru_cache(maxsize=1)
def order(seed: int, epoch: int, samples: int) -> Tensor:
    """The samples in the order of an epoch, which is drawn once and not in each of its steps."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


def batch_rows(seed: int, step: int, samples: int, batch: int) -> Tensor:
    """The rows (at most `batch`, int64) of the samples in optimizer step `step`, counted from 0.

    Each epoch visits every sample once, in a random order of its own.
    """
    epoch, position = divmod(step, steps_per_epoch(samples, batch))
    return order(seed, epoch, samples)[position * batch : (position + 1) * batch]
