"""Runs independent tasks on all CPU cores."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


def on_all_cores(tasks: Sequence[Callable[[], object]]) -> list:
    """The results of the tasks, in order; computed one after another where processes cannot be forked safely.

    Forked processes inherit what this process has imported and cached (torch, operators' shapes), so run a similar
    task here first. OpenMP and CUDA must not be in use: call torch.set_num_threads(1).
    """
    global _tasks
    cores = min(len(os.sched_getaffinity(0)) if _forks_safely() else 1, len(tasks))
    if cores <= 1:
        return [task() for task in tasks]
    _tasks = tasks  # inherited by the forks, so they need not be picklable
    gc.freeze()  # so that garbage collection in the forks does not touch, and so copy, the shared pages
    try:
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            return pool.map(_run_task, range(len(tasks)), chunksize=1)
    finally:
        gc.unfreeze()


def _run_task(index: int) -> object:
    return _tasks[index]()


def _forks_safely() -> bool:
    """Whether this is Linux and autograd has no thread; with a GPU it has one, and then refuses to work in a fork."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            names.append(path.read_text())
    return sys.platform == "linux" and not any(name.startswith("pt_autograd") for name in names)
