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

from train import parallel
from train.errors import UserError
from train.parallel import Losses


class NotFinite(UserError):
    """A loss or a gradient is not a finite number. No weight has been changed by it."""


@dataclass(frozen=True)
class StepResult:
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
    torch.OutOfMemoryError leaves the step to be tried again with a smaller micro-batch; where it is the
    optimizer that finds no memory, weights may be half changed and no micro-batch is small enough: UserError.
    """
    totals: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    share = parallel.share(window) if everyone else range(window)
    starts = share[::micro_batch] or [share.start]  # an empty share takes part in the sum
    for start in starts:
        rows = slice(start, min(start + micro_batch, share.stop))
        with everyone.no_sync() if everyone and start != starts[-1] else nullcontext():
            with autocast():
                parts = everyone(losses, rows) if everyone else losses(rows)
            scaler.scale(parts["loss"].sum() / window).backward()
        for name, per_sample in parts.items():
            totals[name] = totals.get(name, 0.0) + per_sample.detach().float().sum() / window

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
    return StepResult(taken=scaler.get_scale() >= scale, losses=means, grad_norm=grad_norm)
