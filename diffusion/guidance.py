"""Classifier-free guidance: wraps a network into a denoiser, which samplers call.

A network maps (x (B, ...), t (B,), condition (B, ...)) to an output shaped like x; a denoiser maps (x, level) to it.
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
    """A denoiser that returns u + scale (c - u), for the network's outputs u without and c with the condition.

    Ho & Salimans 2022, eq. 6, with scale = 1 + w. conditional, unconditional: conditions (B, ...) for the network,
    evaluated in one batch of 2B, the unconditional half first. If scale is 1, and outside of the noise levels
    low < sigma/alpha <= high of `interval` (Kynkäänniemi et al. 2024), only the conditional half is evaluated.
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


def mixed(coarse: Denoiser, fine: Denoiser, above: float) -> Denoiser:
    """A denoiser that is `coarse` at noise levels sigma/alpha > above, and `fine` at the others.

    An image gets its large structures where there is much noise and its details where there is little: with denoisers
    of two conditions, the ones follow the first and the others the second ("prompt mixing", Patashnik et al. 2023,
    arXiv 2303.11306).
    """
    return lambda x, level: (coarse if level.noise_ratio > above else fine)(x, level)
