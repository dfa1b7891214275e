"""Timestep embedding: turns a timestep into a vector for the resnet blocks.

Shapes: B batch, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of `timestep` at dim/2 frequencies from 1 down to 1/10000.

    Vaswani et al. 2017, section 3.5, with cosine first as in Ho et al. 2020.
    `timestep` is (B,), in units of the training schedule; the result is (B, dim) in float32.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponent)  # B D/2
    return torch.cat([angle.cos(), angle.sin()], dim=-1)  # B D


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron from the sinusoids to the embedding: (B, dim_in) to (B, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim_out)
        self.linear_2 = nn.Linear(dim_out, dim_out)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))
