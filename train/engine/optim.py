"""AdamW and its learning rate, a pure function of the optimizer step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from train.base import processes as parallel


@dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 1e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: stay, or fall to zero along half a cosine by the last step."""
    warmup_steps: int = 500
    """Optimizer steps in which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    fused: bool = False
    """AdamW's fused kernel: it needs no temporaries as large as the gradients."""

    def __post_init__(self):
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ValueError("learning_rate and max_grad_norm must be positive")
        if self.learning_rate > 10:  # 1e4 for 1e-4
            raise ValueError(f"learning_rate must be at most 10, not {self.learning_rate}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps and weight_decay must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), not {self.betas}")


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of `total_steps`, whatever the accumulation."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_adamw(parameters: Iterable[nn.Parameter], config: OptimConfig, shard: bool = False) -> torch.optim.Optimizer:
    """Loshchilov and Hutter 2019. `shard` divides its state among the processes, where there are several."""
    make = torch.optim.AdamW
    if shard and parallel.world_size() > 1:
        from train.engine.sharding import ShardedAdamW as make  # here, since it takes a second that few runs need
    fused = config.fused or None  # None: torch chooses between its other two forms
    return make(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused
    )


def kept_here(optimizer: torch.optim.Optimizer) -> dict:
    """The state that this process keeps, by parameter: all of it, or its share."""
    return getattr(optimizer, "optim", optimizer).state


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
