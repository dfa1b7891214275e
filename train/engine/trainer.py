"""The loop that both trainings share: step, log, sample, save; and going on where a run has stopped."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from train.base import processes as parallel
from train.base.errors import UserError
from train.base.files import DAMAGED
from train.base.progress import progress
from train.engine.device import MixedPrecision, peak_memory
from train.engine.log import RunLog
from train.engine.optim import OptimConfig
from train.engine.step import NotFinite, StepResult
from train.engine.stopping import Stop, Stopped
from train.runs.checkpoint import last_good, load_latest, save_checkpoint, set_aside_later

LOG_INTERVAL = 10  # optimizer steps
MAX_LOST = 10  # windows in a row whose fp16 loss is not finite
MAX_SKIPPED = 20  # windows in a row that fp16 overflow may skip: the loss scale has then fallen a million-fold
TO_TRY = (
    "try a lower learning_rate, with which the run goes on from there, or, in another output_dir, longer warmup_steps "
    "or no mixed_precision"
)


@dataclass(frozen=True)
class TrainingConfig:
    output_dir: str
    num_epochs: int
    batch_size: int
    """Images that go through the model at once (the micro-batch), in each process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one optimizer step."""
    auto_batch: bool = False
    """Choose the micro-batch by the card's memory, and halve it when it does not fit; a step stays the same."""
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    ema_decay: float = 0.9999
    ema_on_cpu: bool = False
    """Keep the moving average in the CPU's memory; every step copies the weights there."""
    sample_interval: int = 1000
    """Optimizer steps between validations with pictures."""
    save_interval: int = 1000
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = 2
    """The last ones; the best is kept besides."""
    max_hours: float | None = None
    """Hours from the first step after which the run saves and stops, to be started again."""
    shard_optimizer: bool = False
    """Divide the optimizer's state among the processes of a torchrun; a single one keeps it all."""
    optimizer: OptimConfig = OptimConfig()  # noqa: RUF009 (frozen)

    def __post_init__(self):
        for name in ("num_epochs", "batch_size", "gradient_accumulation_steps", "sample_interval", "save_interval",
                     "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {self.ema_decay}")
        if self.max_hours is not None and not self.max_hours > 0:
            raise ValueError(f"max_hours must be positive, not {self.max_hours}")

    @property
    def window(self) -> int:
        """Images that one optimizer step learns from, in all processes together."""
        return self.batch_size * self.gradient_accumulation_steps


class Stateful(Protocol):
    """What a checkpoint holds; all processes ask for it together, and the first one's answer is saved."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> object: ...


class Best:
    """The best validation so far; `choose`, min or max, tells which of two values of the metric is the better."""

    def __init__(self, metric: str, choose: Callable[..., float]):
        self.metric, self.choose = metric, choose
        self.value: float | None = None

    def improved_by(self, metrics: dict[str, float]) -> bool:
        new = metrics[self.metric]
        if not math.isfinite(new) or (self.value is not None and self.choose(self.value, new) == self.value):
            return False
        self.value = new
        return True

    def state_dict(self) -> dict:
        return {"metric": self.metric, "value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def train(
    title: str,
    config: TrainingConfig,
    total_steps: int,
    step: int,
    state: dict[str, Stateful],
    take_step: Callable[[int], StepResult],
    validate: Callable[[int], dict[str, float]],
    best: Best,
    curves: tuple[str, ...],
    device: torch.device,
) -> None:
    """Bring `state` from the `step` that `resume` gave to `total_steps` optimizer steps.

    take_step(step) makes optimizer step `step` (from 0) and changes `state`; validate(step) writes pictures
    and gives metrics. A step that fp16 overflow left out is tried again on the same samples.

    Raises UserError where a loss is not finite, or memory for the validation runs out, and Stopped where the run was
    asked to end before; what it has saved in the last two cases is what a run without end has after this step.
    """
    folder = Path(config.output_dir)
    checkpoints = folder / "checkpoints"
    stop = Stop(config.max_hours)
    parallel.on_main(partial(set_aside_later, checkpoints, step))
    if step:
        print(f"{title}: going on after step {step} of {total_steps}", file=sys.stderr)
    log = RunLog(folder, step)

    def save(better: bool) -> None:
        saved = {name: part.state_dict() for name, part in state.items()}
        parallel.on_main(partial(save_checkpoint, checkpoints, step, saved, config.keep_checkpoints, better))

    with stop.listening(), progress(total=total_steps, initial=step, desc=title, unit="step") as bar:
        images, logged_time = 0, time.perf_counter()
        while step < total_steps:
            try:
                result = _taken(take_step, step)
            except NotFinite as error:
                raise UserError(f"{title}: step {step + 1}: {error}; {last_good(checkpoints)}; {TO_TRY}") from None
            step, images = step + 1, images + result.images
            bar.update()
            if step % LOG_INTERVAL == 0 or step == total_steps:
                now = time.perf_counter()
                speed = images / (now - logged_time)
                images, logged_time = 0, now
                memory = peak_memory(device)
                log.write(step, **result.losses, grad_norm=result.grad_norm, images_per_second=speed,
                          peak_memory_bytes=memory)  # fmt: skip
                whose = "" if device.type == "cuda" else "process "  # where tensors alone cannot be counted
                figures = f"{speed:.1f} images/s, {whose}{memory / 2**30:.2f} GiB"
                bar.set_postfix_str(f"loss {result.losses['loss']:.4f}, {figures}", refresh=False)
            better, paused = False, time.perf_counter()
            if step % config.sample_interval == 0 or step == total_steps:
                try:
                    metrics = parallel.on_main(partial(_validated, validate, step))
                except UserError as error:
                    save(better)
                    raise UserError(f"{title}: {error}; saved after step {step} of {total_steps}") from None
                log.write(step, **metrics)
                log.draw_curves(title, *curves)
                better = best.improved_by(metrics)
            reasons = parallel.gather(stop.reason(step == total_steps))
            reason = next(filter(None, reasons), None)  # of any process, in all of them
            if step % config.save_interval == 0 or step == total_steps or better or reason:
                save(better)
            logged_time += time.perf_counter() - paused  # the speed is that of training
            if reason:
                why, status = reason
                raise Stopped(f"{title}: {why}: saved after step {step} of {total_steps}; start again to go on", status)


def _taken(take_step: Callable[[int], StepResult], step: int) -> StepResult:
    """Take step `step`, again and again while fp16 overflow leaves it out.

    The loss scale falls meanwhile, which helps gradients that overflow, but not a loss that is not finite itself.
    """
    skipped = lost = 0
    while not (result := take_step(step)).taken:
        skipped += 1
        lost = 0 if math.isfinite(result.losses["loss"]) else lost + 1
        if lost == MAX_LOST:
            raise NotFinite(f"the loss was not finite {lost} times in a row")
        if skipped > MAX_SKIPPED:
            raise NotFinite(f"fp16 gradients overflowed {skipped} times in a row")
    return result


def _validated(validate: Callable[[int], dict[str, float]], step: int) -> dict[str, float]:
    try:
        return validate(step)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"out of memory while validating and drawing: {reason}; python -m train.memcheck shows what takes how much"
        ) from None


def total_steps(samples: int, config: TrainingConfig) -> int:
    return config.num_epochs * math.ceil(samples / config.window)


def resume(config: TrainingConfig, total_steps: int, state: dict[str, Stateful]) -> int:
    """Load the run's newest whole checkpoint into `state`; the step that it was saved after, or 0.

    Nothing is written. UserError where the checkpoint is not one of this run, or of more than `total_steps` steps.
    """
    found = load_latest(Path(config.output_dir) / "checkpoints")
    if found is None:
        return 0
    if found.step > total_steps:
        raise UserError(
            f"{found.path}: the run has already taken {found.step} steps, more than the {total_steps} asked for; "
            "raise num_epochs"
        )
    saved = found.state
    if saved.keys() != state.keys():
        raise UserError(
            f"{found.path}: holds {', '.join(saved)}, this run {', '.join(state)}; use another output_dir"
        )
    for name, part in state.items():
        try:
            part.load_state_dict(saved[name])
        except UserError as error:
            raise UserError(f"{found.path}: {error}") from None
        except DAMAGED as error:
            raise UserError(f"{found.path}: the {name} in it is of another model; use another output_dir") from error
    return found.step
