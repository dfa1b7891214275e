"""The loop that both trainings share: step, log, sample, save; and going on where a run has stopped."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from train import parallel
from train.checkpoint import load_latest, save_checkpoint
from train.device import MixedPrecision, peak_memory
from train.errors import UserError
from train.files import DAMAGED
from train.log import RunLog
from train.optim import OptimConfig
from train.progress import progress
from train.step import StepResult

LOG_INTERVAL = 10  # optimizer steps
MAX_SKIPPED = 20  # windows in a row that fp16 overflow may skip: the loss scale has then fallen a million-fold


@dataclass(frozen=True)
class TrainingConfig:
    output_dir: str
    num_epochs: int
    batch_size: int
    """Images that go through the model at once (the micro-batch), in each process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches in one optimizer step."""
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    ema_decay: float = 0.9999
    sample_interval: int = 1000
    """Optimizer steps between validations with pictures."""
    save_interval: int = 1000
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = 2
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

    @property
    def window(self) -> int:
        """Images that one optimizer step learns from, in all processes together."""
        return self.batch_size * self.gradient_accumulation_steps


class Stateful(Protocol):
    """What a checkpoint holds; all processes ask for it together, and the first one's answer is saved."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> object: ...


def train(
    title: str,
    config: TrainingConfig,
    total_steps: int,
    state: dict[str, Stateful],
    take_step: Callable[[int], StepResult],
    validate: Callable[[int], dict[str, float]],
    curves: tuple[str, ...],
    device: torch.device,
) -> None:
    """Bring `state` from its last checkpoint, or from the start, to `total_steps` optimizer steps.

    take_step(step) makes optimizer step `step` (from 0) and changes `state`; validate(step) writes pictures
    and gives metrics. A step that fp16 overflow left out is tried again on the same samples.
    """
    folder = Path(config.output_dir)
    checkpoints = folder / "checkpoints"
    step = _resume(checkpoints, state)
    if step:
        print(f"{title}: going on after step {step} of {total_steps}", file=sys.stderr)
    log = RunLog(folder, step)
    with progress(total=total_steps, initial=step, desc=title, unit="step") as bar:
        logged_at, logged_time, skipped = step, time.perf_counter(), 0
        while step < total_steps:
            result = take_step(step)
            if not result.taken:
                skipped += 1
                if skipped > MAX_SKIPPED:
                    raise UserError(
                        f"{title}: fp16 gradients overflowed {skipped} times in a row at step {step}; "
                        "go on from the last checkpoint with a lower learning_rate or mixed_precision no"
                    )
                continue
            step, skipped = step + 1, 0
            bar.update()
            if step % LOG_INTERVAL == 0 or step == total_steps:
                now = time.perf_counter()
                speed = (step - logged_at) * config.window / (now - logged_time)
                logged_at, logged_time = step, now
                memory = peak_memory(device)
                log.write(step, **result.losses, grad_norm=result.grad_norm, images_per_second=speed,
                          peak_memory_bytes=memory)  # fmt: skip
                bar.set_postfix_str(
                    f"loss {result.losses['loss']:.4f}, {speed:.1f} images/s, {memory / 2**30:.2f} GiB", refresh=False
                )
            if step % config.sample_interval == 0 or step == total_steps:
                log.write(step, **parallel.on_main(lambda at=step: validate(at)))
                log.draw_curves(title, *curves)
                logged_time = time.perf_counter()
            if step % config.save_interval == 0 or step == total_steps:
                saved = {name: part.state_dict() for name, part in state.items()}
                parallel.on_main(
                    lambda at=step, saved=saved: save_checkpoint(checkpoints, at, saved, config.keep_checkpoints)
                )


def total_steps(samples: int, config: TrainingConfig) -> int:
    return config.num_epochs * math.ceil(samples / config.window)


def _resume(checkpoints: Path, state: dict[str, Stateful]) -> int:
    """Load the newest whole checkpoint into `state`; the step that it was saved after, or 0."""
    found = load_latest(checkpoints)
    if found is None:
        return 0
    step, saved = found
    if saved.keys() != state.keys():
        raise UserError(
            f"{checkpoints}: a checkpoint holds {', '.join(saved)}, this run {', '.join(state)}; use another output_dir"
        )
    for name, part in state.items():
        try:
            part.load_state_dict(saved[name])
        except UserError as error:
            raise UserError(f"{checkpoints}: {error}") from None
        except DAMAGED as error:
            raise UserError(f"{checkpoints}: the {name} in it is of another model; use another output_dir") from error
    return step
