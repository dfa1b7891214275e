"""The processes of one run, as torchrun starts them: `torchrun --nproc_per_node=2 -m train.ldm --config FILE`.

Each has a GPU of its own where there are any. Only the first process writes files and prints; the others have to see
the same folders. Without torchrun there is one process, and nothing here has an effect.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import cache
from itertools import count, zip_longest
from typing import TypeVar

import torch
import torch.distributed as dist

from train.base.errors import Interrupted, Stopped, UserError, out_of_memory, require
from train.base.interruption import released

T = TypeVar("T")

# How long processes wait for each other: to begin, in a step, and while the first encodes, validates or saves. It is
# torchrun that notices a process that has died.
MEETING, STEP, ERRAND = timedelta(minutes=5), timedelta(minutes=30), timedelta(days=1)
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")  # of torchrun's variables
MEETING_ERRORS = (RuntimeError, LookupError, ValueError, TypeError, OverflowError)  # of dist.rendezvous

_patient: dist.ProcessGroup | None = None  # the processes once more, with the patience for an errand
_leaves_others_out = False  # see `leaving_others_out`
_groups = count(1)  # in a Python program one after another, of which none may read what another has left


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _leaves_others_out else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _leaves_others_out else 1


@contextmanager
def leaving_others_out() -> Iterator[None]:
    """While entered, this process acts as if it were the only one."""
    global _leaves_others_out
    before, _leaves_others_out = _leaves_others_out, True
    try:
        yield
    finally:
        _leaves_others_out = before


@contextmanager
def joined() -> Iterator[None]:
    """While entered, this process belongs to the process group of torchrun, if there is one; only the first prints.

    A command is within one from beginning to end, and in a Python program each function of train.api that all of the
    processes have to call; where one is entered already, that stays.

    A UserError, OSError or full memory, of one process or of all, is raised in one of them only; the others exit with
    status 2. UserError where there are more processes than GPUs, where torchrun's variables are not all there, and
    where another process no longer answers.
    """
    global _patient
    alone = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1"
    if alone or _patient is not None:
        yield
        return
    # Functions of this module keep the group that there is when it is imported, which optimizers do; the threads of a
    # group that is kept do not end with it, and may abort the process while Python shuts down.
    importlib.import_module("torch.distributed.nn.functional")
    common, number, size = _meet()
    store, stopped = dist.PrefixStore(f"group {next(_groups)}", common), None
    try:
        backend = "gloo"
        if torch.cuda.is_available():
            backend, there, wanted = "nccl", torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
            require(wanted <= there, f"--nproc_per_node={wanted}: there are {there} GPUs, one for each process")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=STEP)
        _patient = dist.new_group(backend="gloo", timeout=ERRAND)
        with open(os.devnull, "w") as nowhere, ExitStack() as quiet:
            if number:
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            try:
                yield
            except Stopped as error:  # of all processes, after the same step
                stopped = error
        wait_for_all()  # torchrun ends all as soon as one has exited with a status other than 0
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        full = out_of_memory(error)
        cut_off = not full and (isinstance(error, dist.DistError) or "gloo" in str(error))  # an error of NCCL, or gloo
        bug = isinstance(error, RuntimeError) and not full and not cut_off  # which all processes raise
        if not bug and not _first_to_speak(store):
            sys.exit(2)
        if not cut_off:
            raise
        lost = f"the processes of this run have lost each other ({_first_line(error)})"
        raise UserError(f"{lost}; started again, it goes on from its last checkpoint") from error
    finally:
        _patient = None
    dist.destroy_process_group()
    if stopped:
        raise stopped


@cache  # it stays open: who came to the next group would find the last one's, which is about to close
def _meet() -> tuple[dist.Store, int, int]:
    """What the processes have in common, the number of this one and how many there are; UserError if that fails."""
    for name in NUMBERS:
        value = os.environ.get(name)
        require((value or "").isdecimal(), f"{name}: torchrun makes it a number, and it is {value or 'not there'}; "
                "start with torchrun, or, for a single process, without TORCHELASTIC_RUN_ID")  # fmt: skip
    for name in ("RANK", "LOCAL_RANK"):
        number, size = (int(os.environ[key]) for key in (name, name.replace("RANK", "WORLD_SIZE")))
        require(number < size, f"{name}={number}: there are {size} processes, counted from 0; start with torchrun")
    try:
        met = next(dist.rendezvous("env://", timeout=MEETING))
        met[0].set_timeout(STEP)  # through the store they find each other once more, when they first compute together
        return met
    except MEETING_ERRORS as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ['MASTER_PORT']}"
        raise UserError(f"the processes of this run do not find each other at {where} ({_first_line(error)}); "
                        "start all of them again, with torchrun") from error  # fmt: skip


def _first_to_speak(store: dist.Store) -> bool:
    """Whether no other process has said in a sentence why the run ends."""
    try:
        return store.add("sentences", 1) == 1
    except RuntimeError:  # torchrun, which counts, is gone
        return True


def _first_line(error: Exception) -> str:
    return "".join(str(error).splitlines()[:1])


def on_main(make: Callable[[], T]) -> T:
    """Call `make` in the first process only, as if there were no others, since these wait here.

    All return its result, or raise its UserError, OSError or Interrupted.
    """
    if world_size() == 1:
        return make()
    outcome: list = [None, None]  # a result or an error
    if rank() == 0:
        try:
            with leaving_others_out():
                outcome[0] = make()
        except (UserError, OSError, Interrupted) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, group=_patient)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def in_each(make: Callable[[], T]) -> list[T]:
    """Call `make` in each process, where it may be interrupted; the first returns all results, the others their own.

    All raise the UserError, OSError or Interrupted of one. For pieces of long work, within `interruption.waiting`.
    """
    result: T | None = None
    error: BaseException | None = None
    try:
        with released():
            result = make()
    except (UserError, OSError, Interrupted) as raised:
        error = raised
    for one in gather(error, _patient):
        if one is not None:
            raise one
    if world_size() == 1:
        return [result]
    results = [result] * world_size() if rank() == 0 else None
    dist.gather_object(result, results, group=_patient)
    return results or [result]


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def wait_for_all() -> None:
    """Until all processes are here, however long that takes."""
    gather(None, _patient)


def require_agreement(facts: Callable[[], dict[str, object]]) -> None:
    """UserError, in all processes, where these facts are not the same in all of them; of one process, none is asked."""
    if world_size() == 1:
        return
    first, *others = gather({name: str(fact) for name, fact in facts().items()}, _patient)
    for number, found in enumerate(others, 1):
        for name in first:
            lines = zip_longest(first[name].splitlines(), found[name].splitlines(), fillvalue="nothing")
            differing = next((pair for pair in lines if pair[0] != pair[1]), None)
            if differing:
                ours, theirs = (line.strip() for line in differing)
                said = f"{name}: {ours} in process 0, {theirs} in process {number}"
                again = "start all with the same command, in folders that all of them share"
                raise UserError(f"the processes of this run do not begin alike ({said}); {again}")
