"""Independent questions, answered on all cores."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path


def on_all_cores(questions: Sequence[Callable[[], object]]) -> list:
    """Their answers, in order. Where processes cannot be forked safely, one after another.

    What is forked knows what this process has learned so far (torch, operators' shapes), so ask nothing before
    one question like these has been answered here. No OpenMP or CUDA may be at work: torch.set_num_threads(1).
    """
    cores = len(os.sched_getaffinity(0)) if _forks_safely() else 1
    if min(cores, len(questions)) <= 1:
        return [question() for question in questions]
    gc.freeze()  # what is here already need not be looked at again, nor copied
    with multiprocessing.get_context("fork").Pool(
        min(cores, len(questions)), initializer=_remember, initargs=(questions,)
    ) as pool:
        return pool.map(_answer, range(len(questions)), chunksize=1)


def _forks_safely() -> bool:
    """Only Linux can; and where torch sees a GPU, autograd has a thread for it and refuses to work in a fork."""
    if sys.platform != "linux":
        return False
    return not any(name.startswith("pt_autograd") for name in _names_of_threads())


def _names_of_threads() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended by now
            yield path.read_text()


def _remember(questions: Sequence[Callable[[], object]]) -> None:
    global _questions
    _questions = questions  # forked, not sent: they need not be pickled


def _answer(number: int):
    return _questions[number]()
