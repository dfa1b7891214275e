"""One optimizer step: gradients of a batch, micro-batch by micro-batch; their clipping; AdamW's step on them.

Any way of cutting the batch gives the same gradient, since every sample weighs 1/batch, also in a last micro-batch
that is short. A step that is skipped changes neither learning rate nor moving average nor any counter.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.base.errors import SEE_MEMCHECK, UserError, explaining_out_of_memory, out_of_memory
from train.base.processes import gather
from train.config.sections import MixedPrecision, OptimConfig
from train.engine.device import free_memory
from train.engine.lean import Lean
from train.engine.optim import make_adamw
from train.engine.parallel import Losses, add_gradients, make_buckets, share
from train.engine.precision import GradScaler, autocast_to

EXCHANGING = (
    "out of memory while the processes added up their gradients ({}); start again with half the batch_size "
    "and twice the gradient_accumulation_steps, or with gradient_checkpointing true: the run goes on"
)
NO_ROOM_FOR_OPTIMIZER = (
    "there is no memory for the optimizer's state or temporaries ({}), whatever the batch_size; "
    f"use a smaller model, or a larger card ({SEE_MEMCHECK})"
)


class NotFinite(UserError):
    """A loss, a gradient or an image is not a finite number. No weight has been changed by it."""


@dataclass(eq=False)
class Learner:
    """Parameters, and what turns losses into a step of them."""

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager]
    """A new context in which losses are computed in half precision, or in none."""
    max_grad_norm: float
    lean: bool = True
    """Whether to keep recipes in place of activations."""
    ddp: DistributedDataParallel | None = None
    """Divides the batch among all processes, which communicate in their last micro-batch only."""

    def accumulate(self, losses: Losses, batch: int, micro_batch: int) -> dict[str, Tensor]:
        """Gradients of the mean loss of `batch` samples, `micro_batch` at a time, in place of those that were there.

        Returns this process's part of the mean of each loss, on the device, so that nothing waits for it yet.
        Memory that runs out, here or in `clip`, leaves both to be tried again with a smaller micro-batch; UserError
        where they cannot be, since the processes were communicating already.
        """
        totals: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=self.ddp is None)  # DDP keeps them in its buckets, to add up there
        own = share(batch) if self.ddp else range(batch)
        starts = own[::micro_batch] or [own.start]  # an empty share takes part in the sum
        for start in starts:
            rows = slice(start, min(start + micro_batch, own.stop))
            last = start == starts[-1]
            with self.ddp.no_sync() if self.ddp and not last else nullcontext():
                with self.autocast(), Lean() if self.lean else nullcontext():
                    parts = self.ddp(losses, rows) if self.ddp else losses(rows)
                with explaining_out_of_memory(EXCHANGING) if self.ddp and last else nullcontext():
                    self.scaler.scale(parts["loss"].sum() / batch).backward()
            for name, per_sample in parts.items():
                totals[name] = totals.get(name, 0.0) + per_sample.detach().float().sum() / batch
        return totals

    def clip(self) -> float:
        """The 2-norm of the whole gradient, which is then made at most `max_grad_norm` long."""
        with explaining_out_of_memory(EXCHANGING) if self.ddp else nullcontext():
            try:
                self.scaler.unscale_(self.optimizer)  # once, so that the norm is that of the true gradient
                return float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    self.scaler.update(self.scaler.get_scale())  # it forgets this gradient, and keeps its scale
                raise

    def step(self, loss: float, grad_norm: float) -> bool:
        """Update the parameters. False where fp16 gradients overflowed: nothing has changed but the loss scale.

        Raises NotFinite where loss or gradient are not finite in fp32 or bf16, before any weight has changed; UserError
        where memory has run out, and some weights may have changed.
        """
        if not self.scaler.is_enabled() and not math.isfinite(grad_norm + loss):
            raise NotFinite(f"loss {loss:.4g} and gradient norm {grad_norm:.4g} are not both finite")
        scale = self.scaler.get_scale()
        with explaining_out_of_memory(NO_ROOM_FOR_OPTIMIZER):
            self.scaler.step(self.optimizer)
            self._update_scale()
            if self.ddp:
                make_buckets(self.ddp)
        return self.scaler.get_scale() >= scale

    def _update_scale(self) -> None:
        """Once more where memory runs out, which leaves the scale as it was: the whole step must not be repeated."""
        try:
            return self.scaler.update()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        free_memory()
        self.scaler.update()

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def make_learner(
    parameters: Sequence[nn.Parameter], config: OptimConfig, shard_optimizer: bool, device: torch.device,
    precision: MixedPrecision, lean: bool = True,
) -> Learner:  # fmt: skip
    """A learner with AdamW, in all processes of the run together."""
    return Learner(
        parameters=list(parameters),
        optimizer=make_adamw(parameters, config, shard_optimizer),
        scaler=GradScaler(device.type, enabled=precision == "fp16"),
        autocast=autocast_to(device, precision),
        max_grad_norm=config.max_grad_norm,
        lean=lean,
        ddp=add_gradients(parameters),
    )


def mean_losses(totals: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each loss over the whole batch, from the parts of it that `accumulate` gave to each process."""
    parts = gather({name: float(total) for name, total in totals.items()})
    return {name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]}
