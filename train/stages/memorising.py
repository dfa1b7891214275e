"""Where images are only learned by heart: the loss on validation images rises while that on training images falls.

Before, a model learns what the images have in common; from there on it learns the images themselves, and samples become
copies of them. How many steps that takes grows with the number of images (Bonnaire et al. 2025, "Why Diffusion Models
Don't Memorize", arXiv 2505.17638).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from train.base.units import percent

Validation = Mapping[str, float]
"""Of one averaged model: its step, its mean loss on training and on validation images, and the share of its samples
that are accused of being copies."""
KEYS = "step", "training_loss", "validation_loss", "copies"

IN_A_ROW = 2  # validations that must show it, the newest ones: a single one may be noise
RISE = 0.05  # of the lowest loss on validation images; between two validations it varies by 0.01 to 0.03 anyway


def validations(metrics: Iterable[Validation]) -> list[Validation]:
    """Those lines of a run's metrics that are of a validation, with finite losses."""
    return [line for line in metrics if all(math.isfinite(line.get(key, math.nan)) for key in KEYS)]


def by_heart_since(found: Sequence[Validation]) -> int | None:
    """The step since which images are learned by heart, as the last of these validations show; None where not."""
    if not found:
        return None
    best = min(range(len(found)), key=lambda place: found[place]["validation_loss"])
    then, recent = found[best], found[best + 1 :][-IN_A_ROW:]
    shown = len(recent) == IN_A_ROW and all(parted(then, now) for now in recent)
    return int(then["step"]) if shown else None


def parted(then: Validation, now: Validation) -> bool:
    """Whether the loss on training images has fallen since, and that on validation images has clearly risen."""
    risen = now["validation_loss"] > (1 + RISE) * then["validation_loss"]
    return risen and now["training_loss"] < then["training_loss"]


def warning(found: Sequence[Validation]) -> str | None:
    """A sentence for the user, where more steps only learn images by heart."""
    since = by_heart_since(found)
    if since is None:
        return None
    share = found[-1]["copies"]
    seen = f"{percent(share)} of the samples are copies" if share else "no copies are seen among the samples yet"
    return (
        f"since step {since} the loss on validation images rises while that on training images falls ({seen}): more "
        "steps only learn these images by heart; stop here, or give more images"
    )
