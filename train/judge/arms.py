"""The arms of the comparison: what a classifier is trained on, and for how long.

The arm `real` sets the measure. Beside it, an arm with generated images is run twice: for as many optimizer steps ("is
it better?"), and for so many that each real image is seen as often ("or are the real images only diluted?").
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from train.base.randomness import generator
from train.judge.labelled import Labelled, draw_of_each
from train.judge.material import Material

TIMES = (0.5, 1.0, 2.0, 4.0)
SIFTED_TIMES = 1.0
ENOUGH_OF_THEM = 0.9  # of the images that an arm asks for; it is left out where fewer are there
SHARES = (0.25, 0.5, 0.75)  # of the real images, of the learning curve; the arm `real` is its last point


@dataclass(frozen=True)
class Arm:
    name: str
    group: Literal["without generated", "with generated", "alone"]
    real: float = 1.0
    """Share of the real training images."""
    times: float = 0.0
    """Generated images for each real training image."""
    reconstructed: bool = False
    """Take the VAE's reconstructions instead of the real images."""
    sifted: bool = False
    """Take those of the generated images that sifting leaves."""
    augmented: bool = False
    length: float = 1.0
    """Optimizer steps, in those of the arm `real`."""
    exposure: Literal["steps", "real images"] = "steps"
    """What is as in the arm `real`."""

    @property
    def in_words(self) -> str:
        return self.name if self.exposure == "steps" else f"{self.name}, at equal exposure to real images"


REAL = Arm("real", "without generated")
GENERATED = Arm("generated alone", "alone", real=0.0, times=1.0)
RECONSTRUCTED = Arm("reconstructions alone", "alone", reconstructed=True)
CURVE = tuple(Arm(f"{share:.0%} of the real images", "alone", real=share) for share in SHARES)


def times_for(real: Tensor, generated: Tensor) -> dict[float, float]:
    """Which of TIMES the generated images suffice for, (U,) of each user; where for none, all that are there.

    Each with how many generated images an arm then has for each real one, which is less where users lack some.
    """
    asked = {t: wanted(t, real) for t in TIMES}
    found = {t: torch.minimum(count, generated) for t, count in asked.items()}
    enough = [t for t in TIMES if float(found[t].sum()) >= ENOUGH_OF_THEM * float(asked[t].sum())]
    if not enough:
        enough = [round(float(generated.sum() / real.sum()), 3)]
        found[enough[0]] = torch.minimum(wanted(enough[0], real), generated)
    return {t: float(found[t].sum() / real.sum()) for t in enough}


def wanted(times: float, real: Tensor) -> Tensor:
    """How many generated images of each user (U,) an arm asks for: at least one."""
    return (times * real).round().long().clamp(min=1)


def plan(times: dict[float, float], quick: bool, sifted: float = 0.0) -> list[Arm]:
    """All arms; the real images alone get as many steps as the longest arm with generated ones, too ("oversampled").

    `times` are those of `times_for`; `sifted` is how many images sifting leaves for each real one, 0 where it is not
    tried.
    """
    if quick:
        nearest = min(times, key=lambda t: abs(t - 1))
        times = {nearest: times[nearest]}
    arms = []
    for augmented in (False, True):
        ending = " + augmentation" if augmented else ""
        most = 1 + max(times.values())
        arms.append(Arm("real" + ending, "without generated", augmented=augmented))
        arms.append(Arm(f"real{ending}, oversampled", "without generated", augmented=augmented, length=most))
        mixed = [("generated", t, there) for t, there in times.items()]
        mixed += [("sifted", SIFTED_TIMES, sifted)] if sifted else []
        for kind, t, there in mixed:
            name = f"real + {t:g} x {kind}{ending}"
            one = Arm(name, "with generated", times=t, sifted=kind == "sifted", augmented=augmented)
            arms += [one, replace(one, length=1 + there, exposure="real images")]
    return [*arms, GENERATED, RECONSTRUCTED, *(() if quick else CURVE)]


def training_set(arm: Arm, material: Material, seed: int) -> Labelled:
    """What a judge learns from in an arm; where not all images are taken, the seed draws which, user by user."""
    rng = generator(seed, "judge", 2)
    source = material.reconstructed if arm.reconstructed else material.training
    there = source.users.bincount(minlength=material.num_users)
    chosen = source
    if arm.real < 1:
        share = (arm.real * there).round().long()
        chosen = source.of(draw_of_each(source.users, share.clamp(min=1) if arm.real else share, rng))
    made = material.generated
    if arm.sifted:
        chosen = chosen.with_more(made.of(material.sifted.rows[seed]))
    elif arm.times:
        chosen = chosen.with_more(made.of(draw_of_each(made.users, wanted(arm.times, there), rng)))
    return chosen
