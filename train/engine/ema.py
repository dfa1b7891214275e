"""An exponential moving average of a model's weights: what validates, samples and is kept at the end."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """`model` is an average of the weights that `update` has seen, in float32, ready to be used.

    The n-th update (n = 1, 2, ...) keeps min(decay, n / (n + 9)) of the average, so that the initial random
    weights are forgotten: without that warm-up a decay of 0.9999 still holds 37% of them after 10,000 steps.

    `on_cpu` keeps the average in the CPU's memory, wherever the weights are.
    """

    def __init__(self, model: nn.Module, decay: float, on_cpu: bool = False):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        if on_cpu:
            self.model.cpu()
        self.decay, self.on_cpu = decay, on_cpu
        self.updates = 0

    def decay_at(self, update: int) -> float:
        return min(self.decay, update / (update + 9))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average <- d * average + (1 - d) * weights"""
        self.updates += 1
        averages = list(self.model.parameters())
        weights = [w.to(a.device) for a, w in zip(averages, model.parameters(), strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(self.updates))

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """The average, where `model` is; from the CPU it changes places with the weights of `model` meanwhile."""
        if not self.on_cpu:
            yield self.model
            return
        training = model.training
        self._swap(model)
        try:
            yield model.eval()
        finally:
            self._swap(model)
            model.train(training)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            weights = weight.to(average.device, copy=True)
            weight.copy_(average)
            average.copy_(weights)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
