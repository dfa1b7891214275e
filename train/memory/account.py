"""Whose memory it is: a trace summed up by component and category, at its peak and over time.

Bytes are those that operators ask for ("requested"); what the card gives for them is the allocator's matter.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.memory.trace import Storage, Trace

CATEGORIES = ("weights", "gradients", "optimizer state", "half copies", "activations", "temporaries")
HEADINGS = {category: category for category in CATEGORIES} | {"activations": "kept for backward"}
OUTSIDE = "outside the models"  # inputs, noise, losses
OPTIMIZER = "optimizer-wide"  # what clipping, AdamW and the average take for all parameters at once


def component(storage: Storage) -> str:
    if storage.module:
        return storage.module.split(".")[0]
    return OPTIMIZER if storage.phase in ("optimizer", "EMA") else OUTSIDE


@dataclass(frozen=True)
class Peak:
    """The moment at which most memory is alive, and the operator whose result was the last straw."""

    bytes: int
    clock: int
    phase: str
    operator: str
    module: str


class Account:
    """Storages in the order of their births, with the sums that can be asked of them."""

    def __init__(self, trace: Trace):
        self.storages = trace.storages
        self.forward_ends = trace.forward_ends
        self.end = trace.clock + 1
        self.bytes = np.array([s.bytes for s in self.storages], dtype=np.int64)
        self.born = np.array([s.born for s in self.storages])
        self.died = np.array([s.died or self.end for s in self.storages])
        self.category = [s.category or "temporaries" for s in self.storages]
        self.component = [component(s) for s in self.storages]

    def with_sizes(self, sizes: np.ndarray) -> "Account":
        """The same births and deaths, of storages of these sizes (`storages` still say what they were)."""
        other = copy.copy(self)
        other.bytes = sizes
        return other

    def live(self, sizes: np.ndarray | None = None, of: np.ndarray | None = None) -> np.ndarray:
        """Bytes alive at each tick of the clock, of all storages or of those that the mask `of` chooses."""
        sizes = self.bytes if sizes is None else sizes
        sizes = sizes if of is None else np.where(of, sizes, 0)
        change = np.zeros(self.end + 1, dtype=np.int64)
        np.add.at(change, self.born, sizes)
        np.add.at(change, self.died, -sizes)
        return change.cumsum()[: self.end]

    def peak(self, phase: str | None = None) -> Peak:
        """The highest moment of all, or of one phase."""
        live = self.live()
        births = self.born if phase is None else self.born[self.of_phases((phase,))]
        clock = int(births[live[births].argmax()])
        last = self.storages[int(np.searchsorted(self.born, clock))]
        return Peak(int(live[clock]), clock, last.phase, last.operator, last.module)

    def phases(self) -> list[str]:
        return list(dict.fromkeys(s.phase for s in self.storages))

    def of_phases(self, phases: Sequence[str]) -> np.ndarray:
        """Which storages are born in one of these phases."""
        return np.array([s.phase in phases for s in self.storages])

    def alive(self, clock: int) -> np.ndarray:
        return (self.born <= clock) & (clock < self.died)

    def table(self, clock: int) -> dict[str, dict[str, int]]:
        """Bytes alive at this moment: component, then category."""
        rows = [*dict.fromkeys(c for c in self.component if c not in (OPTIMIZER, OUTSIDE)), OPTIMIZER, OUTSIDE]
        sums = {row: dict.fromkeys(CATEGORIES, 0) for row in rows}
        for i in np.flatnonzero(self.alive(clock)):
            row = sums[self.component[i]]
            row[self.category[i]] += int(self.bytes[i])
        return sums

    def largest(self, clock: int, count: int) -> list[tuple[int, Storage]]:
        """The largest storages alive at this moment that are neither weights nor made from them."""
        alive = [i for i in np.flatnonzero(self.alive(clock)) if self.category[i] in ("activations", "temporaries")]
        alive.sort(key=lambda i: -self.bytes[i])
        return [(int(self.bytes[i]), self.storages[i]) for i in alive[:count]]

    def of_category(self, category: str, clock: int | None = None) -> int:
        """Bytes of a category alive at a moment, or over the whole trace at most."""
        live = self.live(of=np.array([c == category for c in self.category]))
        return int(live.max() if clock is None else live[clock])

    def modules(self, clock: int, depth: int = 3) -> dict[str, dict[str, int]]:
        """Bytes alive at this moment by module, cut off after `depth` names (of its model), then by category."""
        sums: dict[str, dict[str, int]] = {}
        for i in np.flatnonzero(self.alive(clock)):
            names = self.storages[i].module.split(".")
            nested = names[1:2] in (["unet"], ["encoder"], ["decoder"])  # EMA.unet, VAE.decoder: models in models
            name = ".".join(names[: depth + nested]) or self.component[i]
            row = sums.setdefault(name, dict.fromkeys(CATEGORIES, 0))
            row[self.category[i]] += int(self.bytes[i])
        return sums
