"""Whether this process had the cores that it wanted."""

import time
from pathlib import Path

import torch


class Waiting:
    """The share of the time in which this process's threads waited for a core that others had."""

    def __init__(self):
        self.began, self.before = time.perf_counter(), _waited()

    def share(self) -> float | None:
        """Since the beginning; None where the system does not say."""
        now = _waited()
        if now is None or self.before is None:
            return None
        return (now - self.before) / (time.perf_counter() - self.began) / torch.get_num_threads()


def _waited() -> float | None:
    """Seconds for which all threads of this process were ready and not run (Linux, proc(5): schedstat)."""
    try:
        files = Path("/proc/self/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[1]) for file in files) / 1e9 or None
    except (OSError, IndexError, ValueError):
        return None
