"""The verdict: do generated images help a classifier, beside the best that can be had without them?

Every arm with generated images is compared with the best arm without any, image by image on the same held-out
recordings. The intervals of one judge hold all at once, so that a lucky arm among many is no gain.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from train.base.units import percent, points
from train.judge.arms import Arm
from train.judge.interval import Figure, Variance, between_seeds, over_recordings
from train.judge.material import TestSet
from train.judge.sight import doubts, is_blind
from train.judge.trials import Trials

HELPS, HARMS = "helps", "does harm"
NO_DIFFERENCE, UNKNOWN = "makes no difference that could be seen", "cannot be told"
SATURATED = 0.99  # accuracy of real images alone from which on nothing is left to gain
TITLES = {"network": "the convolutional network", "ridge": "ridge regression on row spectra"}


@dataclass(frozen=True, eq=False)
class Judgement:
    """What one judge says on one test set."""

    judge: str
    word: str
    may_judge: bool
    says: str
    """Whether it may judge, and why not."""
    chance: float
    accuracy: dict[Arm, Figure]
    gains: dict[Arm, Figure]
    """Of the arms with generated images, in accuracy, over `baseline`."""
    baseline: Arm
    """The best arm without generated images."""
    best: Arm
    """The best arm with generated images, of those that are a sure gain if there are any."""

    @property
    def gain(self) -> Figure:
        return self.gains[self.best]


def judge(name: str, trials: Trials, tests: str, test: TestSet) -> Judgement:
    arms, users = list(trials.recognised), test.images.users
    right = {arm: trials.correct(arm, tests, users).double() for arm in arms}
    accuracy = {arm: over_recordings(right[arm], test.recordings) for arm in arms}
    without, with_generated = (
        [arm for arm in arms if arm.group == group] for group in ("without generated", "with generated")
    )
    baseline = max(without, key=lambda arm: accuracy[arm].mean)
    differences = {arm: right[arm] - right[baseline] for arm in with_generated}
    seeds = of_a_difference([between_seeds(right[arm]) for arm in (*without, *with_generated)])
    count = len(with_generated)
    gains = {arm: over_recordings(d, test.recordings, count, seeds, least=-1.0) for arm, d in differences.items()}
    sure = [arm for arm in with_generated if gains[arm].low > 0]
    best = max(sure or with_generated, key=lambda arm: gains[arm].mean)
    chance = by_chance(trials.recognised[baseline]["held_out"], users)
    says = why_not(accuracy[baseline], chance, gains[best])
    word = UNKNOWN if says else word_for(gains, best)
    able = f"it may judge: {percent(accuracy[baseline].mean)} without generated images (chance {percent(chance)})"
    doubt = doubts(accuracy[baseline], chance)
    able += f"; but {doubt}" if doubt else ""
    return Judgement(name, word, word != UNKNOWN, says or able, chance, accuracy, gains, baseline, best)


def of_a_difference(arms: Sequence[Variance]) -> Variance:
    """The variance between seeds of the difference of two arms, from that of all arms together.

    As in Dunnett's comparisons of several treatments with a control (J. Am. Stat. Assoc. 50 (1955) 1096): an arm's own
    variance between a few seeds is hardly more than a guess.
    """
    return Variance(2 * sum(one.value for one in arms) / len(arms), sum(one.freedom for one in arms))


def by_chance(said: Tensor, users: Tensor) -> float:
    """How often answers `said`, given to the test images of `users` (N,) in any order, would be right.

    The answers are those to the held-out images, of all users: of --test_dir, which may hold a single user, its own
    answers would not tell who recognises that user from who says it always.
    """
    number = int(max(said.max(), users.max())) + 1
    answers, there = (one.flatten().bincount(minlength=number) / one.numel() for one in (said, users))
    return float(answers.double() @ there.double())


def why_not(accuracy: Figure, chance: float, gain: Figure) -> str:
    """Why a judge of this accuracy without generated images cannot judge; "" where it can."""
    room, half = 1 - accuracy.mean, gain.high - gain.mean
    if is_blind(accuracy, chance):
        return (f"it may not judge: with the real images alone it recognises {percent(accuracy.mean)}, which is not "
                f"above chance ({percent(chance)})")  # fmt: skip
    if accuracy.mean >= SATURATED or room <= half:
        return (f"it may not judge: with the real images alone it recognises {percent(accuracy.mean)} already, so that "
                f"no image could raise it by more than {percent(room)}, and the interval of a gain is "
                f"{percent(half)} to each side")  # fmt: skip
    return ""


def word_for(gains: dict[Arm, Figure], best: Arm) -> str:
    """Helps: some share of generated images is a sure gain. Does harm: as many as real ones, not sifted, are a sure
    loss, both at equal steps and at equal exposure, with and without augmentation."""
    if gains[best].low > 0:
        return HELPS
    nearest = min((arm.times for arm in gains), key=lambda times: abs(times - 1))
    usual = [gain for arm, gain in gains.items() if arm.times == nearest and not arm.sifted]
    return HARMS if all(gain.high < 0 for gain in usual) else NO_DIFFERENCE


def verdict(judgements: Sequence[Judgement]) -> dict:
    """The word of all judges together, the sentence, and the figures of the judge that decided it.

    A judge that sees no difference does not outvote one that sees it; two that contradict each other tell nothing.
    """
    able = [one for one in judgements if one.may_judge]
    words = {one.word for one in able}
    contradict = {HELPS, HARMS} <= words
    word = UNKNOWN if contradict or not able else next((w for w in (HELPS, HARMS) if w in words), NO_DIFFERENCE)
    leading = next((one for one in able if one.word == word), (able or judgements)[0])
    ordered = [leading, *(one for one in judgements if one is not leading)]
    said = f"{word}: {'the judges contradict each other: ' if contradict else ''}{'; '.join(map(in_words, ordered))}"
    gain = asdict(leading.gain) if leading.may_judge else None
    return {"word": word, "sentence": said, "gain": gain, "arm": leading.best.name, "exposure": leading.best.exposure,
            "baseline": leading.baseline.name, "judge": leading.judge}  # fmt: skip


def in_words(one: Judgement) -> str:
    if not one.may_judge:
        return f"{TITLES[one.judge]}: {one.says}"
    before, after = (f"{percent(one.accuracy[arm].mean)} ({arm.in_words})" for arm in (one.baseline, one.best))
    low, high = points(one.gain.low), points(one.gain.high)
    doubt = doubts(one.accuracy[one.baseline], one.chance)
    by = f"{TITLES[one.judge]} ({doubt})" if doubt else TITLES[one.judge]
    return f"{points(one.gain.mean)} points [{low}, {high}], from {before} to {after}, by {by}"
