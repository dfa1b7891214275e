"""Images that show nothing, or so little that it is probably a mistake, which no error tells of."""

import torch
from torch import Tensor

from train.base.errors import some

FEW_LEVELS = 64  # of 256: what 14-bit values in a 16-bit file span


def poor_contrast(darkest: Tensor, brightest: Tensor, names: list[str]) -> list[str]:
    """A sentence about the images of one colour, and one about those of few grey levels.

    From the darkest and the brightest level of each channel of each image, 0 to 255, int (N, C).
    """
    flat = (darkest == brightest).all(1)
    levels = brightest.amax(1) - darkest.amin(1) + 1
    faint = (levels < FEW_LEVELS) & ~flat
    said = []
    if flat.any():
        said.append(
            f"of a single colour, so nothing can be learned from them: {_listed(flat, names)}; leave them out, or if "
            "there is more to see in them, save them as opaque 8-bit grey or RGB (transparent pixels are black here, "
            "and so is what is drawn in black on them)"
        )
    if faint.any():
        said.append(
            f"of at most {int(levels[faint].max())} of the 256 grey levels, so hardly to be seen by networks: "
            f"{_listed(faint, names)}; stretch all alike to 0 to 255 (12-bit values in 16-bit files, for one, by 16)"
        )
    return said


def _listed(which: Tensor, names: list[str]) -> str:
    """How many of the images, and some of their names."""
    chosen = [names[row] for row in torch.nonzero(which).flatten().tolist()]
    return f"{len(chosen):,} of {len(names):,} images ({some(chosen)})"
