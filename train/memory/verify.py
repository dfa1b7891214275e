"""Compares the account with a running training: prints the predicted peak first, the measured one after a few steps.

On a GPU torch counts the allocated bytes, so the peak is compared. On the CPU a peak of tensors alone cannot be
measured: the process also holds Python, the images and oneDNN's scratch. Tensors that remain between steps are
counted on both.
"""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import nn

from train.base.processes import world_size
from train.base.progress import say
from train.base.units import MiB
from train.config.sections import MixedPrecision
from train.engine.optim import kept_here
from train.engine.trainer import Trainer
from train.memory.account import HEADINGS
from train.memory.allocator import served
from train.memory.components import bytes_of
from train.memory.fit import account_of, on_gpu
from train.memory.gpus import gpu_here
from train.memory.overhead import cublas
from train.memory.scenario import Scenario

STEPS = 3  # after these, the peak no longer changes
TOLERANCE = 0.03


def watch_memory(trainer: Trainer, precision: MixedPrecision) -> Callable[[], None]:
    """Print the predicted peak of a step; the returned function, called after each step, prints the measured one."""
    stage, gpu = trainer.stage, gpu_here(trainer.device)
    scenario = Scenario(stage.actual_config, stage.name, len(stage.data.user_names), validates=False)
    scenario = scenario.with_training(mixed_precision=precision)  # which may be another than the config's
    scenario = scenario.of_one_process(world_size(), trainer.micro_batch.size)
    account = account_of(on_gpu(scenario, gpu))
    predicted = {"peak": served(account).peak_allocated + (cublas(gpu, account).bytes if gpu else 0)}
    print(f"Memory: {predicted['peak'] / MiB:,.0f} MiB at the peak of a step (predicted; see train.memcheck)")
    rows = account.table(account.peak().clock).items()
    trainer.predicted_memory = {name: {HEADINGS[category]: n for category, n in row.items()} for name, row in rows}
    for name in ("weights", "gradients", "optimizer state"):  # at the step's end, when the gradients still exist
        predicted[name] = account.of_category(name, account.end - 1)
    models = [*stage.models(), *([] if stage.training.ema_on_cpu else [trainer.ema.model])]
    steps = 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(trainer.device)

    def after_step() -> None:
        nonlocal steps
        steps += 1
        if steps == STEPS:
            measured = alive(models, [learner.optimizer for learner in stage.learners()])
            if gpu:
                measured["peak"] = torch.cuda.max_memory_allocated(trainer.device)
            compare(predicted, measured)

    return after_step


def alive(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Measured bytes by category, counted from the tensors themselves."""
    weights = {t.data_ptr(): t for model in models for t in (*model.parameters(), *model.buffers())}
    stepped = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    states = [t for optimizer in optimizers for state in kept_here(optimizer).values() for t in state.values()]
    return {
        "weights": bytes_of(weights.values()),
        "gradients": bytes_of(p.grad for p in stepped if p.grad is not None),
        "optimizer state": bytes_of(t for t in states if t.dim()),  # step counts stay on the CPU
    }


def compare(predicted: dict[str, int], measured: dict[str, int]) -> None:
    """Print both, and a warning for each category that differs by more than TOLERANCE."""
    both = ", ".join(f"{name} {measured[name] / MiB:,.1f} ({predicted[name] / MiB:,.1f})" for name in measured)
    say(f"Memory in MiB, measured (predicted): {both}")
    for name, count in measured.items():
        if abs(count - predicted[name]) > TOLERANCE * max(count, 1):
            say(f"warning: {name}: {count:,} bytes measured, {predicted[name]:,} predicted", sys.stderr)
