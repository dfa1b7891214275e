"""Plain augmentation of time-frequency pictures, which costs nothing and is what generated images have to beat.

Time shift, gain, noise, and masks of time and frequency (Park et al., "SpecAugment", arXiv 1904.08779).
"""

import torch
from torch import Tensor

from train.data.images import to_float, to_uint8

NAMES = ("time shift", "gain", "noise", "mask of time", "mask of frequency")
GAIN, OFFSET, NOISE = 0.2, 0.1, 0.05  # greatest relative gain and offset, deviation of the noise; pixels span 2
AT_ONCE = 2**24  # numbers that are changed together: 64 MiB in float32, and several times that on the way
MASK = 1 / 6  # greatest share of a side that is masked


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], each changed in all five ways by random numbers of a CPU generator."""
    b, c, h, w = x.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng).to(x.device)

    start = (draw(b, 1) * w).long()
    columns = (torch.arange(w, device=x.device) + start) % w  # B W: the picture begins later, and goes round
    x = x.gather(3, columns[:, None, None, :].expand(b, c, h, w))
    x = x * (1 + GAIN * (2 * draw(b, 1, 1, 1) - 1)) + OFFSET * (2 * draw(b, 1, 1, 1) - 1)
    x = x + NOISE * torch.randn(x.shape, generator=rng).to(x.device)
    mean = x.mean((1, 2, 3), keepdim=True)
    for side, shape in ((w, (b, 1, 1, w)), (h, (b, 1, h, 1))):
        width = draw(b, 1) * MASK * side
        first = draw(b, 1) * (side - width)
        at = torch.arange(side, device=x.device)
        x = torch.where(((at >= first) & (at < first + width)).reshape(shape), mean, x)
    return x


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """The same of uint8 images (N, C, H, W), in batches where they are many."""
    size = max(AT_ONCE // images[0].numel(), 1)
    return torch.cat([to_uint8(augment(to_float(batch), rng)) for batch in images.split(size)])
