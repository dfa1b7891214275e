"""Sums of a trace by component and category, at its peak and over time.

All bytes are those of tensors, as operators request them; allocator.py works out how much memory the GPU gives for
them. What kernels may take inside (train/memory/scratch.py) is among the storages, and in none of these sums.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from train.memory.trace import SCRATCH, Storage, Trace

CATEGORIES = ("weights", "gradients", "optimizer state", "half copies", "activations", "temporaries")
HEADINGS = {category: category for category in CATEGORIES} | {"activations": "kept for backward"}
OUTSIDE = "outside the models"  # inputs, noise, losses
OPTIMIZER = "optimizer-wide"  # clipping, AdamW and the EMA, for all parameters at once


@dataclass(frozen=True)
class Peak:
    """The moment at which the most memory is alive, and the operator whose result reached it."""

    bytes: int
    clock: int
    phase: str
    operator: str
    module: str


class Account:
    """The storages of a trace in the order of their births, and sums over them."""

    def __init__(self, trace: Trace):
        self.storages = trace.storages
        self.forward_ends = trace.forward_ends
        self.end = trace.clock + 1
        self.bytes = np.array([s.bytes for s in self.storages], dtype=np.int64)
        self.itemsize = np.array([s.itemsize for s in self.storages], dtype=np.int64)
        self.born = np.array([s.born for s in self.storages])
        self.died = np.array([s.died or self.end for s in self.storages])
        self.category = [s.category or "temporaries" for s in self.storages]
        self.is_scratch = np.array([c == SCRATCH for c in self.category])
        elsewhere = {"optimizer": OPTIMIZER, "EMA": OPTIMIZER}
        self.component = [s.module.split(".")[0] or elsewhere.get(s.phase, OUTSIDE) for s in self.storages]

    def with_sizes(self, sizes: np.ndarray) -> "Account":
        """A copy with these sizes in `bytes`; `storages` keep the traced sizes."""
        other = copy.copy(self)
        other.bytes = sizes
        return other

    def live(self, sizes: np.ndarray | None = None, mask: np.ndarray | None = None) -> np.ndarray:
        """Bytes alive at each tick of the clock, over all tensors or those that `mask` selects."""
        mask = ~self.is_scratch if mask is None else mask & ~self.is_scratch
        return self._live(np.where(mask, self.bytes if sizes is None else sizes, 0))

    def _live(self, sizes: np.ndarray) -> np.ndarray:
        change = np.zeros(self.end + 1, dtype=np.int64)
        np.add.at(change, self.born, sizes)
        np.add.at(change, self.died, -sizes)
        return change.cumsum()[: self.end]

    def scratch(self) -> int:
        """The most bytes that a single kernel may take inside."""
        return int(self._live(np.where(self.is_scratch, self.bytes, 0)).max())

    def most_elements(self) -> int:
        """Elements of the largest tensor."""
        return int((self.bytes // self.itemsize)[~self.is_scratch].max())

    def peak(self, phase: str | None = None) -> Peak:
        """The peak of the whole trace, or of one phase."""
        live = self.live()
        births = self.born[~self.is_scratch if phase is None else ~self.is_scratch & self.of_phases((phase,))]
        clock = int(births[live[births].argmax()])
        storage = self.storages[int(np.searchsorted(self.born, clock))]
        return Peak(int(live[clock]), clock, storage.phase, storage.operator, storage.module)

    def phases(self) -> list[str]:
        return list(dict.fromkeys(s.phase for s in self.storages))

    def of_phases(self, phases: Sequence[str]) -> np.ndarray:
        """Mask of the storages that are born in one of these phases."""
        return np.array([s.phase in phases for s in self.storages])

    def alive(self, clock: int) -> np.ndarray:
        """Mask of the tensors that are alive at this moment."""
        return (self.born <= clock) & (clock < self.died) & ~self.is_scratch

    def table(self, clock: int) -> dict[str, dict[str, int]]:
        """Bytes alive at this moment, by component, then category."""
        rows = [*dict.fromkeys(c for c in self.component if c not in (OPTIMIZER, OUTSIDE)), OPTIMIZER, OUTSIDE]
        return self._sums(clock, self.component.__getitem__, rows)

    def modules(self, clock: int, depth: int = 3) -> dict[str, dict[str, int]]:
        """Bytes alive at this moment, by module, then category; module names are cut to `depth` parts."""

        def name_of(i: int) -> str:
            names = self.storages[i].module.split(".")
            nested = names[1:2] in (["unet"], ["encoder"], ["decoder"])  # a model inside a model, such as EMA.unet
            return ".".join(names[: depth + nested]) or self.component[i]

        return self._sums(clock, name_of)

    def _sums(self, clock: int, row_of: Callable[[int], str], rows: Sequence[str] = ()) -> dict[str, dict[str, int]]:
        sums = {row: dict.fromkeys(CATEGORIES, 0) for row in rows}
        for i in np.flatnonzero(self.alive(clock)):
            row = sums.setdefault(row_of(i), dict.fromkeys(CATEGORIES, 0))
            row[self.category[i]] += int(self.bytes[i])
        return sums

    def largest(self, clock: int, count: int) -> list[tuple[int, Storage]]:
        """The largest activations and temporaries alive at this moment, with their bytes."""
        alive = [i for i in np.flatnonzero(self.alive(clock)) if self.category[i] in ("activations", "temporaries")]
        alive.sort(key=lambda i: -self.bytes[i])
        return [(int(self.bytes[i]), self.storages[i]) for i in alive[:count]]

    def of_category(self, category: str, clock: int | None = None) -> int:
        """Bytes of a category alive at a moment, or its maximum over the whole trace."""
        live = self.live(mask=np.array([c == category for c in self.category]))
        return int(live.max() if clock is None else live[clock])
