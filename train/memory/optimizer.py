"""The optimizer and the loss scaler of a training as on a GPU, for meta and for real tensors."""

import torch
from torch import nn

from train.engine.optim import make_adamw
from train.memory.scenario import Scenario
from train.memory.trace import NoTrace, Trace


class Scaler(torch.amp.GradScaler):
    """The training's loss scaler; its unscaling begins the trace's phase "optimizer"."""

    def __init__(self, trace: Trace | NoTrace, device: torch.device, enabled: bool):
        # "cuda" is refused on a machine without a GPU; the scaler's few tensors are on the loss's device anyway.
        # With a scale of 1 no gradient overflows, so no step is skipped.
        super().__init__("cuda" if device.type == "cuda" else "cpu", init_scale=1.0, enabled=enabled)
        self.trace = trace

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.trace.phase = "optimizer"
        super().unscale_(optimizer)


def share_of_optimizer(parameters: list[nn.Parameter], ranks: int) -> list[nn.Parameter]:
    """The parameters that rank 0 of `ranks` updates; each parameter goes to the rank that has the fewest elements."""
    own, loads = [], [0] * ranks
    for p in sorted(parameters, key=lambda p: -p.numel()):
        rank = loads.index(min(loads))
        loads[rank] += p.numel()
        own += [p] if rank == 0 else []
    return own


class FusedAdamW(torch.optim.Optimizer):
    """Allocates the state of torch.optim.AdamW(fused=True), which has no temporaries and does not run on meta."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, {})

    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None and p not in self.state:
                step = torch.empty((), device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}


def optimizer_on_gpu(parameters: list[nn.Parameter], scenario: Scenario) -> torch.optim.Optimizer:
    """The training's AdamW, before its first step."""
    config, on_meta = scenario.training.optimizer, scenario.device == "meta"
    optimizer = FusedAdamW(parameters) if config.fused and on_meta else make_adamw(parameters, config)
    optimizer.param_groups[0]["foreach"] = not config.fused  # torch's own choice only for CUDA tensors
    return optimizer
