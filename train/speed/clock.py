"""Times of things that take turns, and how sure they are.

What this machine does beside changes from minute to minute, so only what was measured in turns is compared: round by
round, in an order that turns round each time, after a round that warms up. A figure is the median of the rounds, and
its interval all of them: of six rounds, the true median lies outside with probability 2 / 2^6. What is of less weight
has half as many.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS = 6
BUSY = 0.05  # share of the time in which a thread could have worked and had no core


class Stopwatch:
    """Seconds of one turn by phase; on a GPU a phase ends when its kernels do."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}
        self._now()

    def lap(self, phase: str) -> None:
        """What happened since the last lap was (also) of this phase."""
        before = self.since
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - before

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.since = time.perf_counter()
        return self.since


Turn = Callable[[Stopwatch], None]
Rounds = list[dict[str, float]]
"""Seconds by phase, of each round."""


def in_turns(turns: dict[str, Turn], device: torch.device, few: bool = False) -> dict[str, Rounds]:
    """The rounds of each side, by its name."""
    found: dict[str, Rounds] = {name: [] for name in turns}
    for number in range((ROUNDS // 2 if few else ROUNDS) + 1):
        for name in sorted(turns, reverse=number % 2 == 1):
            watch = Stopwatch(device)
            turns[name](watch)
            if number:  # the first round warms up
                found[name].append(watch.seconds)
    return found


def one_phase(work: Callable[[], object], name: str = "all") -> Turn:
    """A turn that consists of this work."""

    def take(watch: Stopwatch) -> None:
        work()
        watch.lap(name)

    return take


@dataclass(frozen=True)
class Figure:
    median: float
    low: float
    high: float


def figure(values: list[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))


def ratio(a: list[float], b: list[float]) -> Figure:
    """Of a to b, both by round."""
    return figure([x / y for x, y in zip(a, b, strict=True)])
