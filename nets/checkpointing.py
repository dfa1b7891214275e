"""Gradient checkpointing: keep a layer's input only, and recompute its activations in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". It costs about one more forward pass and saves most
of the memory of the activations; the gradients are the same.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A layer that recomputes its activations in the backward pass while `checkpointing` is on."""

    checkpointing = False

    def __call__(self, *args):
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


def set_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Switch checkpointing on or off in every `Checkpointed` layer of `model`."""
    for module in model.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = enabled
