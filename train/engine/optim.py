"""AdamW and its learning rate, a pure function of the optimizer step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from train.base.processes import world_size
from train.config.sections import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of `total_steps`, whatever the accumulation."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class AdamW(torch.optim.AdamW):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(in_form_of(self, state))


def in_form_of(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """The state, fused or not as this optimizer is, in whatever form it was saved: the tensors are the same."""
    forms = [{**saved, "fused": own["fused"]} for saved, own in
             zip(state["param_groups"], optimizer.param_groups, strict=True)]  # fmt: skip
    return {**state, "param_groups": forms}


def make_adamw(parameters: Iterable[nn.Parameter], config: OptimConfig, shard: bool = False) -> torch.optim.Optimizer:
    """Loshchilov and Hutter 2019. `shard` divides its state among the processes, where there are several."""
    make = AdamW
    if shard and world_size() > 1:
        from train.engine.sharding import ShardedAdamW as make  # here, since it takes a second that few runs need
    fused = config.fused or None  # None: torch chooses between its other two forms
    return make(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused
    )


def kept_here(optimizer: torch.optim.Optimizer) -> dict:
    """The state that this process keeps, by parameter: all of it, or its share."""
    return getattr(optimizer, "optim", optimizer).state
