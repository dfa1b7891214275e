"""The processes of one run, as torchrun starts them: `torchrun --nproc_per_node=2 -m train.ldm --config FILE`.

Each has a GPU of its own where there are any. Only the first process writes files and prints. Without torchrun there is
one process, and nothing here has an effect.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from train.base.errors import UserError, require

T = TypeVar("T")

_leaves_others_out = False  # see `leaving_others_out`


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

    A UserError or OSError, of one process or of all, is raised in one of them only; the others exit with status 2.
    UserError where there are more processes than GPUs, and where another process no longer answers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    # Functions of this module keep the group that there is when it is imported, which optimizers do; the threads of a
    # group that is kept do not end with it, and may abort the process while Python shuts down.
    importlib.import_module("torch.distributed.nn.functional")
    store, number, size = next(dist.rendezvous("env://"))
    try:
        backend = "gloo"
        if torch.cuda.is_available():
            backend, there, wanted = "nccl", torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
            require(wanted <= there, f"--nproc_per_node={wanted}: there are {there} GPUs, one for each process")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The others wait while the first encodes, validates or saves; it is torchrun that notices a process that dies.
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timedelta(days=1))
        with open(os.devnull, "w") as nowhere, ExitStack() as quiet:
            if number:
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield
    except (UserError, OSError, RuntimeError) as error:
        cut_off = isinstance(error, dist.DistError) or "gloo" in str(error)  # an error of NCCL, or of gloo
        bug = isinstance(error, RuntimeError) and not cut_off  # which all processes raise
        if not bug and store.add("sentences", 1) > 1:  # another process has raised its error
            sys.exit(2)
        if not cut_off:
            raise
        lost = f"the processes of this run have lost each other ({str(error).splitlines()[0]})"
        raise UserError(f"{lost}; started again, it goes on from its last checkpoint") from error
    gather(None)  # wait for the others: torchrun ends all as soon as one has exited with a status other than 0
    dist.destroy_process_group()


def on_main(make: Callable[[], T]) -> T:
    """Call `make` in the first process only; all return its result, or raise its UserError or OSError."""
    if world_size() == 1:
        return make()
    outcome: list = [None, None]  # a result or an error
    if rank() == 0:
        try:
            outcome[0] = make()
        except (UserError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values
