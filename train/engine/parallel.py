"""How several processes divide a training step, so that its result is that of one process.

Each has the whole model, draws the random numbers of the whole batch from (seed, step) and learns from its share of
the images; their gradients are added up. batch_size x gradient_accumulation_steps therefore stays what the config
says, and a run goes on with any number of processes. AdamW's two averages, 8 bytes for each weight, are in every
process, or divided too: `shard_optimizer` (train/engine/sharding.py).
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.base.processes import rank, world_size

Losses = Callable[[slice], dict[str, Tensor]]
"""Named losses per sample, (B,) each, of these rows of a batch; "loss" is minimised."""


def share(batch: int) -> range:
    """The rows of a batch that this process learns from.

    Shares differ by one row at most; the first is never empty.
    """
    first, size = rank(), world_size()
    return range(-(-batch * first // size), -(-batch * (first + 1) // size))


class Objective(nn.Module):
    """A module whose forward computes the losses, since DistributedDataParallel wraps modules."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self.buckets_made = False  # see `make_buckets`

    def forward(self, losses: Losses, rows: slice) -> dict[str, Tensor]:
        """For an empty share: a loss with zero gradient, since the other processes wait for this one's."""
        if rows.start == rows.stop:
            return {"loss": torch.stack([0.0 * p.sum() for p in self.trained]).sum()}
        return losses(rows)


def add_gradients(parameters: Iterable[nn.Parameter]) -> DistributedDataParallel | None:
    """What adds up the gradients of all processes; None where there is only one.

    Every one of the parameters must have an effect on every loss.
    """
    if world_size() == 1:
        return None
    ddp = DistributedDataParallel(Objective(parameters), gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, _add)
    return ddp


def make_buckets(ddp: DistributedDataParallel) -> None:
    """After the first step, once: put the gradients, zeros from now on, into buckets in the order in which they come.

    DDP has learned that order in its first backward pass and would make the buckets in the second forward pass, beside
    the old ones, as these still hold gradients: twice their memory, with the optimizer's state already there.
    """
    if not ddp.module.buckets_made:
        ddp.zero_grad(set_to_none=True)
        ddp(lambda rows: {}, slice(0, 0))["loss"].backward()  # an empty share
        ddp.module.buckets_made = True


def _add(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A sample weighs 1/batch wherever it is, so the shares' gradients add up; without a hook they are averaged."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
