"""Classifier-free guidance: it wraps a network into a denoiser, which samplers then call.

A network maps (x (B, ...), t (B,), condition (B, ...)) to an output like x; a denoiser maps (x, level)
to one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.schedule import Level

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Level], Tensor]


def guided(
    network: Network,
    conditional: Tensor,
    unconditional: Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """unconditional + scale (conditional - unconditional) (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    conditional, unconditional: (B, ...) as the network takes them. Both halves go through the network in one
    batch of 2B, the unconditional half first. With scale 1, and outside of `interval`, a pair (low, high) of
    noise levels low < sigma/alpha <= high (Kynkäänniemi et al. 2024), only the conditional half is evaluated,
    in a batch of B.
    """
    low, high = interval or (0.0, float("inf"))
    both = torch.cat([unconditional, conditional])  # (2B, ...)

    def denoise(x: Tensor, level: Level) -> Tensor:
        t = torch.full((len(x),), level.t, device=x.device)  # (B,)
        if scale == 1 or not low < level.noise_ratio <= high:
            return network(x, t, conditional)
        output = network(torch.cat([x, x]), torch.cat([t, t]), both)  # (2B, ...)
        output_u, output_c = output.chunk(2)
        return output_u + scale * (output_c - output_u)

    return denoise
