"""Runs independent tasks on all CPU cores."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch


def on_all_cores(tasks: Sequence[Callable[[], object]], most: int | None = None) -> Iterator:
    """Yields the results of the tasks, in order; computed in this process where others cannot be forked safely.

    Forked processes inherit what this process has imported and cached (torch, operators' shapes), so run a similar
    task here first. Each computes with one thread. CUDA must not be in use. There are at most `most` of them; they end
    with this process, however it ends.
    """
    global _tasks
    cores = min(len(os.sched_getaffinity(0)) if _forks_safely() else 1, len(tasks), most or len(tasks))
    if cores <= 1:
        yield from (task() for task in tasks)
        return
    _tasks = tasks  # inherited by the forks, so they need not be picklable
    gc.freeze()  # so that garbage collection in the forks does not touch, and so copy, the shared pages
    try:
        with multiprocessing.get_context("fork").Pool(cores, _begin) as pool:
            yield from pool.imap(_run_task, range(len(tasks)), chunksize=1)
    finally:
        gc.unfreeze()


def _begin() -> None:
    torch.set_num_threads(1)  # a fork has none of the threads that OpenMP remembers, and would wait for them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which the pool ends its processes


def _run_task(index: int) -> object:
    return _tasks[index]()


def _forks_safely() -> bool:
    """Whether this is Linux and autograd has no thread; with a GPU it has one, and then refuses to work in a fork."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            names.append(path.read_text())
    return sys.platform == "linux" and not any(name.startswith("pt_autograd") for name in names)
