"""How well a judge recognises real images, which decides what its word on others is worth."""

from train.base.units import percent
from train.judge.interval import Figure

MOST = 0.5  # accuracy below which a judge is wrong about most real images


def is_blind(real: Figure, chance: float) -> bool:
    """Whether a judge of this accuracy on real images recognises no more than by chance, for all that can be shown."""
    return real.low <= chance


def doubts(real: Figure, chance: float) -> str:
    """Why a judge can tell nothing, or little, of other images; "" where it recognises most real ones."""
    if is_blind(real, chance):
        return (f"it recognises {percent(real.mean)} of real images, which is not above chance ({percent(chance)}), so "
                "that it can tell nothing")  # fmt: skip
    if real.mean < MOST:
        return (f"it is wrong about most real images ({percent(real.mean)} recognised, {percent(chance)} by chance), "
                "so that its word tells little")  # fmt: skip
    return ""
