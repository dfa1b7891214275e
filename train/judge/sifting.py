"""Does sifting pay? Arms with sifted images, each beside the one with as many that are not sifted.

What is taken is what `train.augment --sift` would take, were the generated images that are there all that can be
made. The networks that sift have seen the training recordings only.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from train.base.randomness import generator
from train.base.units import counted, percent, points
from train.judge.arms import SIFTED_TIMES, Arm, times_for, wanted
from train.judge.augmented import COPY, SOMEBODY_ELSE, Judge, sift
from train.judge.interval import Figure, between_seeds, over_recordings
from train.judge.material import Material, Sifted, TestSet
from train.judge.trials import Trials
from train.judge.verdict import HARMS, HELPS, NO_DIFFERENCE, TITLES, UNKNOWN, Judgement, of_a_difference


def with_sifted(material: Material, seeds: list[int], device: torch.device, say: Callable[[str], None]) -> Material:
    """The material with what sifting takes; without, where no more images were generated than there are real ones."""
    made, users = material.generated, material.num_users
    real, there = (one.users.bincount(minlength=users) for one in (material.training, made))
    if len(made) <= len(material.training) or SIFTED_TIMES not in times_for(real, there):
        return material
    say("which of the generated images would sifting leave out?")
    seen = Judge(material.training, material.training_recordings, users, device)(made)
    counts = wanted(SIFTED_TIMES, real)
    # In the order in which the arm with as many images that are not sifted draws its own.
    rows = {seed: sift(made.users, counts, seen, generator(seed, "judge", 2)) for seed in seeds}
    reasons = Counter(one.why_left_out for one in seen)
    left_out = {why: reasons[why] for why in (COPY, SOMEBODY_ELSE)}
    return replace(material, sifted=Sifted(int(torch.minimum(counts, there).sum()), rows, left_out))


def images_left(sifted: Sifted | None) -> float:
    """How many images sifting leaves for an arm, the mean over the seeds; 0 where it leaves a seed without any."""
    left = [len(rows) for rows in sifted.rows.values()] if sifted else [0]
    return sum(left) / len(left) if min(left) else 0.0


def times_sifted(material: Material) -> float:
    """The same for each real image; 0 where no arms are needed: all images pass, so that they would have the same."""
    sifted = material.sifted
    return images_left(sifted) / len(material.training) if sifted and any(sifted.left_out.values()) else 0.0


# ---- the answer


@dataclass(frozen=True)
class Pairs:
    """One judge's arms with sifted images, on average, beside those with as many that are not."""

    judge: str
    unsifted: float  # accuracy
    sifted: float
    gain: Figure

    @property
    def word(self) -> str:
        return HELPS if self.gain.low > 0 else HARMS if self.gain.high < 0 else NO_DIFFERENCE

    @property
    def in_words(self) -> str:
        low, high = points(self.gain.low), points(self.gain.high)
        return (f"{points(self.gain.mean)} points [{low}, {high}], from {percent(self.unsifted)} to "
                f"{percent(self.sifted)}, by {TITLES[self.judge]}")  # fmt: skip


def sifting(trials: dict[str, Trials], tests: str, test: TestSet, material: Material) -> dict | None:
    """The word, the sentence and the figures; None where sifting was not tried.

    `trials` are those of the judges that may judge.
    """
    if not material.sifted:
        return None
    sifted, generated, left = material.sifted, len(material.generated), images_left(material.sifted)
    there = {"generated": generated, "left_out": sifted.left_out, "wanted": sifted.wanted, "left": left}
    reasons = (f"of {counted(generated, 'generated image')} it leaves out {sifted.left_out[SOMEBODY_ELSE]:,} that look "
               f"more like somebody else and {sifted.left_out[COPY]:,} that are suspected copies")  # fmt: skip
    reasons += f", so that its arms have {left:,.0f} of the {sifted.wanted:,} wanted" if left < sifted.wanted else ""
    if not any(sifted.left_out.values()):
        said = f"sifting {NO_DIFFERENCE}: it leaves out none of {counted(generated, 'generated image')}"
        return {"word": NO_DIFFERENCE, "sentence": said, "judge": None, "gain": None, "judges": [], **there}
    both = [one for name, own in trials.items() if (one := in_pairs(name, own, tests, test, len(trials)))]
    if not both:
        why = "no judge may judge" if left else "no image is left"
        said = f"whether sifting helps {UNKNOWN}: {why}; {reasons}"
        return {"word": UNKNOWN, "sentence": said, "judge": None, "gain": None, "judges": [], **there}
    words = {one.word for one in both}
    contradict = {HELPS, HARMS} <= words
    word = UNKNOWN if contradict else next((w for w in (HELPS, HARMS) if w in words), NO_DIFFERENCE)
    leading = next((one for one in both if one.word == word), both[0])
    begins = f"whether sifting helps {UNKNOWN}, the judges contradict each other" if contradict else f"sifting {word}"
    ordered = [leading, *(one for one in both if one is not leading)]
    said = f"{begins}: {'; '.join(one.in_words for one in ordered)}; {reasons}"
    return {"word": word, "sentence": said, "judge": leading.judge, "gain": asdict(leading.gain),
            "judges": [asdict(one) for one in both], **there}  # fmt: skip


def in_pairs(judge: str, trials: Trials, tests: str, test: TestSet, judges: int) -> Pairs | None:
    """Paired by seed and by image. The intervals of all `judges` hold at once, as the arms' mean is asked of each."""
    sifted = [arm for arm in trials.recognised if arm.sifted]
    if not sifted:
        return None

    def right(arms: list[Arm]) -> Tensor:  # S N
        return torch.stack([trials.correct(arm, tests, test.images.users).double() for arm in arms]).mean(0)

    before, after = right([beside(arm, trials) for arm in sifted]), right(sifted)
    seeds = of_a_difference([between_seeds(before), between_seeds(after)])
    gain = over_recordings(after - before, test.recordings, judges, seeds, least=-1.0)
    return Pairs(judge, float(before.mean()), float(after.mean()), gain)


def beside(sifted: Arm, trials: Trials) -> Arm:
    """The arm with as many images that are not sifted."""

    def kind(arm: Arm) -> tuple:
        return arm.group, arm.times, arm.augmented, arm.exposure

    return next(arm for arm in trials.recognised if not arm.sifted and kind(arm) == kind(sifted))


def advice_of(sifted: dict | None, leading: Judgement) -> list[str]:
    """What to try, given what `sifting` says and the judge that decided the verdict."""
    if not sifted or not leading.may_judge:
        return []
    if sifted["word"] == HELPS:
        why = "which is better"
    elif leading.best.sifted and sifted["word"] != HARMS:
        why = f"as in the best arm ({leading.best.name})"
    else:
        return []
    return [f'sift the generated images, {why}: make augment ARGS="--sift"']
