"""The account beside a training that runs: its total before the first step, the measured peak after a few.

What a device lets be seen differs. On a CUDA card torch counts the bytes, and the peak is compared. On the CPU
the process holds Python, the images and oneDNN's scratch memory too, which no account of tensors can tell
apart: there only what stands in memory between two steps is compared, which is also done on a card.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from train.base.progress import say
from train.engine.optim import kept_here
from train.engine.step import StepResult
from train.memory.account import Account
from train.memory.allocator import served
from train.memory.components import size
from train.memory.fit import account_of, on_card
from train.memory.gpus import card_here
from train.memory.overhead import cublas
from train.memory.scenario import Setting

WINDOWS = 3  # after which the peak is that of every later step
TOLERANCE = 0.03
MiB = 2**20


def watched(
    take_step: Callable[[int], StepResult], setting: Setting, device: torch.device,
    models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer],
) -> Callable[[int], StepResult]:  # fmt: skip
    """take_step, which prints after some windows what memory they took beside what this prints now.

    `models` are all that the device holds, `optimizers` all that step. A difference of more than 3% is a warning.
    """
    here = card_here(device)
    account = account_of(on_card(replace(setting, validates=False), here))
    models, optimizers, taken = list(models), list(optimizers), 0
    predicted = {"peak": served(account).peak_allocated + (cublas(here, account).bytes if here else 0)}
    print(f"Memory: {predicted['peak'] / MiB:,.0f} MiB at the peak of a step (predicted; see train.memcheck)")
    predicted |= standing(account)

    def step_and_look(step: int) -> StepResult:
        nonlocal taken
        if here and not taken:
            torch.cuda.reset_peak_memory_stats(device)
        result = take_step(step)
        taken += result.taken
        if taken == WINDOWS and result.taken:
            measured = live(models, optimizers)
            if here:
                measured["peak"] = torch.cuda.max_memory_allocated(device)
            compare(predicted, measured)
        return result

    return step_and_look


def standing(account: Account) -> dict[str, int]:
    """Bytes by category when a step has ended, gradients included."""
    last = account.end - 1
    return {name: account.of_category(name, last) for name in ("weights", "gradients", "optimizer state")}


def live(models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """The same, counted in the tensors that are there."""
    weights = {t.data_ptr(): t for model in models for t in (*model.parameters(), *model.buffers())}
    stepped = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    states = [t for optimizer in optimizers for state in kept_here(optimizer).values() for t in state.values()]
    return {
        "weights": size(weights.values()),
        "gradients": size(p.grad for p in stepped if p.grad is not None),
        "optimizer state": size(t for t in states if t.dim()),  # step counts stay on the CPU
    }


def compare(predicted: dict[str, int], measured: dict[str, int]) -> None:
    """Print both, and a warning for each that differs too much."""
    both = ", ".join(f"{name} {measured[name] / MiB:,.1f} ({predicted[name] / MiB:,.1f})" for name in measured)
    unseen = "" if "peak" in measured else "; a peak of tensors alone cannot be seen on the CPU"
    say(f"Memory in MiB, measured (predicted): {both}{unseen}")
    for name, count in measured.items():
        if abs(count - predicted[name]) > TOLERANCE * max(count, 1):
            say(f"warning: {name}: {count:,} bytes measured, {predicted[name]:,} predicted", sys.stderr)
