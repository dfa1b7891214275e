"""The models of a stage on the meta device, and the bytes that follow from their shapes alone.

For a model of N parameters, of which n are trained:

    weights          4 N    float32, whatever the precision of the arithmetic
    gradients        4 n
    optimizer state  8 n    AdamW's two moments (its step counts stay on the CPU unless it is fused)
    EMA              4 N    a second copy of the model
    half copies      2 m    autocast's copies of the m parameters of linear and convolutional layers

A test checks that the trace (train/memory/trace.py) finds the same bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from nets.unet import UNet2DConditionModel
from train.config.schema import Config
from train.memory.models import blank_stage, parts_of
from train.memory.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Component:
    """A model that a stage keeps on the GPU, the number of its parameters, and what it takes in bytes."""

    name: str
    module: nn.Module
    parameters: int
    weights: int
    gradients: int
    optimizer_state: int
    ema: int
    half_copies: int  # at the end of a forward pass; autocast keeps only those of trained parameters


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def components(scenario: Scenario) -> list[Component]:
    """The models that the scenario keeps on the GPU, here on the meta device."""
    stage, training = blank_stage(replace(scenario, device="meta")), scenario.training
    learned = {p for learner in stage.learners() for p in learner.parameters} if scenario.trains else set()
    half = scenario.trains and training.mixed_precision != "no"
    found = []
    for name, part in parts_of(stage).items():
        trained = [p for p in part.parameters() if p in learned]
        cast = [p for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()]
        weights = bytes_of([*part.parameters(), *part.buffers()])
        averaged = trained and name != "discriminator" and not training.ema_on_cpu
        step_counts = 4 * len(trained) * training.optimizer.fused  # one for each tensor, on the GPU if AdamW is fused
        found.append(Component(
            name, part, sum(p.numel() for p in part.parameters()), weights,
            gradients=bytes_of(trained), optimizer_state=2 * bytes_of(trained) + step_counts,
            ema=weights if averaged else 0,
            half_copies=sum(2 * p.numel() for p in cast if p in learned) if half else 0,
        ))  # fmt: skip
    return found


def without_effect(config: Config, parts: list[Component]) -> int:
    """Number of UNet parameters without effect on its output; there are some if the context is a single token."""
    if config.user_encoder.tokens_per_user > 1:
        return 0
    unets = [part.module for part in parts if isinstance(part.module, UNet2DConditionModel)]
    return sum(p.numel() for unet in unets for p in unet.parameters_without_effect_on_one_token())
