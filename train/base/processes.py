"""Training in several processes: `torchrun --nproc_per_node=2 -m train.ldm --config configs/medium.yaml`.

Each process has the whole model, and a GPU of its own where there are any. They divide every step's window, so
batch_size x gradient_accumulation_steps stays what the config says, and a run goes on with any number of processes:
each draws the whole window's chance from (seed, step) and learns from its share. The first alone writes and speaks.
AdamW's two averages, 8 bytes for each weight, are in every process, or divided too: `shard_optimizer`.

Without torchrun there is one process, the first, and nothing here does anything.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.base.errors import UserError

T = TypeVar("T")
Losses = Callable[[slice], dict[str, Tensor]]

# How long the others wait for the first, which encodes, validates and saves. It is not what notices a process that
# died: torchrun does, and ends them all.
PATIENCE = timedelta(days=1)


_alone = False  # see `alone`


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """While entered, this process acts as if there were no others: what it computes is for itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started, if it has; all but the first keep quiet meanwhile.

    A UserError or OSError, be it of one process or of all, comes out of one of them; the others exit with status 2.
    UserError where there are more processes than GPUs, and where another process does not answer any more.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, number, size = next(dist.rendezvous("env://"))
    try:
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "nccl"
            _take_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
        with open(os.devnull, "w") as nowhere, ExitStack() as quiet:
            if number:
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield
    except (UserError, OSError, RuntimeError) as error:
        cut_off = isinstance(error, dist.DistError) or "gloo" in str(error)  # NCCL's way to say it, and gloo's
        if isinstance(error, RuntimeError) and not cut_off:
            raise
        if store.add("sentences", 1) > 1:  # another has said why
            sys.exit(2)
        if cut_off:
            raise UserError(
                f"the processes of this run have lost each other ({str(error).splitlines()[0]}); started again, "
                "it goes on from its last checkpoint"
            ) from error
        raise
    gather(None)  # torchrun ends all as soon as one has exited with a status other than 0
    dist.destroy_process_group()


def _take_gpu(number: int, wanted: int) -> None:
    if wanted > torch.cuda.device_count():
        raise UserError(f"--nproc_per_node={wanted}: there are {torch.cuda.device_count()} GPUs, one for each process")
    torch.cuda.set_device(number)


def on_main(make: Callable[[], T]) -> T:
    """What `make` returns, or its UserError or OSError, in every process; only the first calls it, the others wait."""
    if world_size() == 1:
        return make()
    outcome: list = [None, None]
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
    """Every process's value, the first's first."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def share(window: int) -> range:
    """The rows of a window that this process learns from.

    Shares differ by one row at most; the first is never empty.
    """
    first, size = rank(), world_size()
    return range(-(-window * first // size), -(-window * (first + 1) // size))


class Objective(nn.Module):
    """Losses as what a module computes of its parameters, which is where DistributedDataParallel takes hold."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self.arranged = False  # see `arrange`

    def forward(self, losses: Losses, rows: slice) -> dict[str, Tensor]:
        """Of an empty share: a loss whose gradient is zero, which the others' sum waits for."""
        if rows.start == rows.stop:
            return {"loss": torch.stack([0.0 * p.sum() for p in self.trained]).sum()}
        return losses(rows)


def add_gradients(parameters: Iterable[nn.Parameter]) -> DistributedDataParallel | None:
    """What `optimizer_step` needs to add up the gradients of all processes; None where there is only one.

    Every one of the parameters must have an effect on every loss.
    """
    if world_size() == 1:
        return None
    objective = DistributedDataParallel(Objective(parameters), gradient_as_bucket_view=True)
    objective.register_comm_hook(None, _add)
    return objective


def arrange(everyone: DistributedDataParallel) -> None:
    """After the first step, once: put the gradients, zeros from now on, into buckets in the order in which they come.

    DDP has learned that order in its first backward pass and would make the buckets in the second forward pass, beside
    the old ones, as these still hold gradients: twice their memory, with the optimizer's state already there.
    """
    if not everyone.module.arranged:
        everyone.zero_grad(set_to_none=True)
        everyone(lambda rows: {}, slice(0, 0))["loss"].backward()  # an empty share
        everyone.module.arranged = True


def _add(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A sample weighs 1/window wherever it is, so the shares' gradients add up; without a hook they are averaged."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
