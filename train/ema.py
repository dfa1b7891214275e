"""An exponential moving average of a model's weights: what validates, samples and is kept at the end."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """`model` is an average of the weights that `update` has seen, in float32, ready to be used.

    The n-th update (n = 1, 2, ...) keeps min(decay, n / (n + 9)) of the average, so that the initial random
    weights are forgotten: without that warm-up a decay of 0.9999 still holds 37% of them after 10,000 steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def decay_at(self, update: int) -> float:
        return min(self.decay, update / (update + 9))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average <- d * average + (1 - d) * weights"""
        self.updates += 1
        averages, weights = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(self.updates))

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
