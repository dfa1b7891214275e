"""What came of the trials on one test set: the verdict, every arm, the learning curve, and who gains.

Shapes: S seeds, N test images, U users.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from train.base.units import percent
from train.judge.arms import CURVE, GENERATED, REAL, Arm, training_set
from train.judge.interval import over_seeds
from train.judge.material import Material, TestSet
from train.judge.reasons import reasons
from train.judge.sifting import advice_of, sifting
from train.judge.trials import Trials
from train.judge.verdict import Judgement, judge, verdict

SAME = 1e-9  # below the difference of two accuracies that are not equal
PLACES = {"held_out": "recordings that nothing was trained on", "test_dir": "recordings of other conditions"}


@dataclass(frozen=True, eq=False)
class Judged:
    trials: dict[str, Trials]
    """By judge."""
    steps: int
    """Optimizer steps of the network in the arm `real`."""
    seeds: list[int]


def result(
    judged: Judged, name: str, test: TestSet, material: Material, found: dict, losses: list[float]
) -> dict:
    """`name` is that of the test set; `found` is what does not depend on it."""
    judgements = [judge(one, trials, name, test) for one, trials in judged.trials.items()]
    word = verdict(judgements)
    leading = next(one for one in judgements if one.judge == word["judge"])
    why = reasons(judgements[0], found, losses, material)
    able = {one.judge: judged.trials[one.judge] for one in judgements if one.may_judge}
    sifted = sifting(able, name, test, material)
    advice = [*(to_try for _, to_try in why if to_try), *advice_of(sifted, leading)]
    return {
        "verdict": word,
        "sifting": sifted,
        "judges": [_one_judge(one) for one in judgements],
        "because": [sentence for sentence, _ in why],
        "advice": list(dict.fromkeys(advice)),
        "arms": [_one_arm(one, arm, judged, material) for one in judgements for arm in one.accuracy],
        "learning_curve": [point for one in judgements for point in learning_curve(one, material)],
        "worth": [worth(one, material) for one in judgements if CURVE[0] in one.accuracy],
        **by_user(leading, judged.trials, name, test, material),
    }


def _one_judge(one: Judgement) -> dict:
    return {"name": one.judge, "word": one.word, "may_judge": one.may_judge, "says": one.says, "chance": one.chance,
            "baseline": one.baseline.name, "accuracy": asdict(one.accuracy[one.baseline]), "arm": one.best.name,
            "exposure": one.best.exposure, "gain": asdict(one.gain)}  # fmt: skip


def _one_arm(one: Judgement, arm: Arm, judged: Judged, material: Material) -> dict:
    gain = one.gains.get(arm)
    return {
        "judge": one.judge, "name": arm.name, "group": arm.group, "times": arm.times or None,
        "augmented": arm.augmented, "exposure": arm.exposure,
        "steps": round(judged.steps * arm.length) if one.judge == "network" else None,
        "images": len(training_set(arm, material, judged.seeds[0])),
        "accuracy": asdict(one.accuracy[arm]), "gain": asdict(gain) if gain else None,
    }  # fmt: skip


# ---- what the images are worth


def learning_curve(one: Judgement, material: Material) -> list[dict]:
    """Accuracy by the share of the real images, without augmentation; nothing where only all of them were tried."""
    arms = [arm for arm in (*CURVE, REAL) if CURVE[0] in one.accuracy]
    return [
        {"judge": one.judge, "share": arm.real, "images": len(training_set(arm, material, 0)),
         "accuracy": asdict(one.accuracy[arm])}
        for arm in arms
    ]  # fmt: skip


def worth(one: Judgement, material: Material) -> dict:
    """Where "real + generated" and "generated alone" stand on the learning curve of the real images."""
    curve = [(point["images"], point["accuracy"]["mean"]) for point in learning_curve(one, material)]
    beside = max(
        (arm for arm in one.gains if not arm.augmented and arm.exposure == "steps"),
        key=lambda arm: one.accuracy[arm].mean,
    )
    alone, together = one.accuracy[GENERATED].mean, one.accuracy[beside].mean
    real = len(material.training)
    there = real_images_for(together, curve)
    if there is None:
        said = (f"{beside.name} reaches {percent(together)}, beyond the learning curve's end: {real:,} real images "
                f"reach {percent(curve[-1][1])}")  # fmt: skip
    else:
        said = f"{beside.name} reaches {percent(together)}, as about {there:,.0f} of the {real:,} real images do alone"
    as_many = real_images_for(alone, curve)
    instead = f"about {as_many:,.0f}" if as_many is not None else "more than all"
    said += f"; generated images alone reach {percent(alone)}, as {instead} of the real ones do"
    return {"judge": one.judge, "sentence": said, "times": there and there / real, "arm": beside.name,
            "accuracy": together}  # fmt: skip


def real_images_for(accuracy: float, curve: list[tuple[int, float]]) -> float | None:
    """How many real images reach an accuracy; None where all of them do not. Below the curve, it begins at nothing."""
    before = (0, 0.0)
    for images, reached in curve:
        if accuracy <= reached:
            share = (accuracy - before[1]) / (reached - before[1]) if reached > before[1] else 1.0
            return before[0] + max(share, 0.0) * (images - before[0])
        before = max(before, (images, reached), key=lambda point: point[1])
    return None


# ---- who gains


def by_user(one: Judgement, trials: dict[str, Trials], name: str, test: TestSet, material: Material) -> dict:
    """Accuracy of each user in the best arms without and with generated images, and the weakest quarter by itself.

    Which users are the weakest is told by the other seeds, so that a seed's bad luck is no gain.
    """
    users, own = test.images.users, trials[one.judge]
    real, with_generated = (
        per_user(own.correct(arm, name, users), users, material.num_users) for arm in (one.baseline, one.best)
    )
    asked_for = material.generated.users
    right = per_user(trials["network"].correct(REAL, "generated", asked_for), asked_for, material.num_users).mean(0)
    counts = users.bincount(minlength=material.num_users)
    there = counts.nonzero().flatten()
    table = [
        {"name": material.user_names[u], "images": int(counts[u]), "real": float(real[:, u].mean()),
         "with_generated": float(with_generated[:, u].mean()), "gain": float((with_generated - real)[:, u].mean()),
         "right_person": None if right[u].isnan() else float(right[u])}
        for u in there.tolist()
    ]  # fmt: skip
    size, seeds = max(1, len(there) // 4), range(len(real))
    rest = [[other for other in seeds if other != seed] or [seed] for seed in seeds]
    weakest = [there[weakest_of(real[others][:, there].mean(0), size)] for others in rest]
    figures = {
        key: asdict(over_seeds([float(values[seed, weakest[seed]].mean()) for seed in seeds]))
        for key, values in (("real", real), ("with_generated", with_generated), ("gain", with_generated - real))
    }
    named = [material.user_names[u] for u in there[weakest_of(real[:, there].mean(0), size)].tolist()]
    return {"users": table, "weakest_quarter": {"users": named, **figures}}


def weakest_of(accuracy: Tensor, size: int) -> Tensor:
    """Which of `accuracy` (T,) are the `size` lowest, in ascending order, with all that are as low as the last of them.

    The highest are not among them, unless all are equal.
    """
    highest, last = accuracy.max(), accuracy.sort().values[size - 1]
    low = (accuracy < last + SAME) & ((accuracy < highest - SAME) | (accuracy.min() > highest - SAME))
    order = accuracy.argsort(stable=True)
    return order[low[order]]


def per_user(right: Tensor, users: Tensor, num_users: int) -> Tensor:
    """The share that is right (S, U) of images (S, N) of each user; NaN for a user without any."""
    sums = torch.zeros(len(right), num_users, dtype=torch.float64).index_add_(1, users, right.double())
    return sums / users.bincount(minlength=num_users)
