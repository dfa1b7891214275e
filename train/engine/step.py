"""One optimizer step: a window of samples, learned from in micro-batches, as if it were one batch.

This function owns autocast, accumulation, loss scaling, clipping and the update, and says whether the step
was taken. What counts steps (learning rate, moving average, intervals) advances only then.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.base import processes as parallel
from train.base.errors import UserError
from train.base.processes import Losses


class NotFinite(UserError):
    """A loss or a gradient is not a finite number. No weight has been changed by it."""


@dataclass(frozen=True)
class StepResult:
    images: int
    """Samples in the window, of all processes together."""
    taken: bool
    """False where fp16 gradients overflowed: then nothing has changed but the loss scale."""
    losses: dict[str, float]
    """Means over the window's samples; "loss" is the one that was minimised."""
    grad_norm: float
    """2-norm of the whole gradient before clipping."""


def optimizer_step(
    losses: Losses,
    window: int,
    micro_batch: int,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    autocast: Callable[[], AbstractContextManager],
    max_grad_norm: float,
    everyone: DistributedDataParallel | None = None,
) -> StepResult:
    """Take one step on the mean of the `window` samples' losses, `micro_batch` of them at a time.

    losses(rows) gives named losses per sample, (B,) each, of those rows of the window; "loss" is minimised.
    Every sample weighs 1/window, so any way of cutting the window gives the same gradient, also when the
    last micro-batch is short.

    `everyone` (of `parallel.add_gradients`) divides the window among all processes. They communicate in their last
    micro-batch only, and all end with the same gradient, hence the same step.

    Raises NotFinite where loss or gradient are not finite in fp32 or bf16, before any weight has changed.
    torch.OutOfMemoryError leaves the step to be tried again with a smaller micro-batch. UserError where it cannot be:
    the optimizer has found no memory, and weights may be half changed; or the processes were communicating already.
    """
    totals = accumulate_gradients(losses, window, micro_batch, optimizer, scaler, autocast, everyone)
    return update_weights(totals, window, parameters, optimizer, scaler, max_grad_norm, everyone)


def accumulate_gradients(
    losses: Losses,
    window: int,
    micro_batch: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    autocast: Callable[[], AbstractContextManager],
    everyone: DistributedDataParallel | None = None,
) -> dict[str, Tensor]:
    """The first half of a step: gradients of the window's mean loss, in place of those that were there.

    Returns this process's part of the mean of each loss, on the device, so that nothing waits for it yet.
    """
    totals: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=everyone is None)  # DDP keeps them in its buckets: micro-batches add up there
    share = parallel.share(window) if everyone else range(window)
    starts = share[::micro_batch] or [share.start]  # an empty share takes part in the sum
    for start in starts:
        rows = slice(start, min(start + micro_batch, share.stop))
        last = start == starts[-1]
        with everyone.no_sync() if everyone and not last else nullcontext():
            with autocast():
                parts = everyone(losses, rows) if everyone else losses(rows)
            try:
                scaler.scale(parts["loss"].sum() / window).backward()
            except torch.OutOfMemoryError:
                if not everyone or not last:
                    raise
                raise UserError(
                    "out of memory while the processes added up their gradients; start again with half the batch_size "
                    "and twice the gradient_accumulation_steps, or with gradient_checkpointing true: the run goes on"
                ) from None
        for name, per_sample in parts.items():
            totals[name] = totals.get(name, 0.0) + per_sample.detach().float().sum() / window
    return totals


def update_weights(
    totals: dict[str, Tensor],
    window: int,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    max_grad_norm: float,
    everyone: DistributedDataParallel | None = None,
) -> StepResult:
    """The second half: the gradients unscaled and clipped, and the optimizer's step on them, if they are finite."""
    scaler.unscale_(optimizer)  # once, so that the norm is that of the true gradient
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    means = {name: float(total) for name, total in totals.items()}
    if everyone:
        shares = parallel.gather(means)
        means = {name: sum(part.get(name, 0.0) for part in shares) for name in shares[0]}
    if not scaler.is_enabled() and not math.isfinite(grad_norm + means["loss"]):
        raise NotFinite(f"loss {means['loss']:.4g} and gradient norm {grad_norm:.4g} are not both finite")
    scale = scaler.get_scale()
    try:
        scaler.step(optimizer)
    except torch.OutOfMemoryError:
        raise UserError(
            "there is no memory for the optimizer's state or temporaries, whatever the batch_size; "
            "use a smaller model, or a larger card (python -m train.memcheck shows what takes how much)"
        ) from None
    scaler.update()
    if everyone:
        parallel.arrange(everyone)
    return StepResult(images=window, taken=scaler.get_scale() >= scale, losses=means, grad_norm=grad_norm)
