"""Laws of sifting as an arm: which images it takes, and what is said of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.judge.cases import case, recorded
from tests.judge.made_up import material, numbered, numbers
from tests.tiny import tiny, tiny_vae
from train.judge.arms import Arm, plan, training_set
from train.judge.augmented import COPY, SOMEBODY_ELSE, Judge, Seen, sift
from train.judge.evaluation import evaluate
from train.judge.labelled import Labelled
from train.judge.material import Material
from train.judge.material import TestSet as Unseen
from train.judge.sifting import advice_of, sifting, times_sifted, with_sifted
from train.judge.trials import Trials, run_ridge
from train.judge.verdict import HARMS, HELPS, NO_DIFFERENCE, UNKNOWN, judge

CPU, SEEDS = torch.device("cpu"), [0, 1, 2]
USERS, REAL, MADE = 3, 5, 20  # images of each user
AS_THEY_ARE, SIFTED = (Arm("", "with generated", times=1.0, sifted=sifted) for sifted in (False, True))
ADVICE = 'make augment ARGS="--sift"'


def seen(why: str = "") -> Seen:
    return Seen(0.3 if why == SOMEBODY_ELSE else 0.5, 0.4, 1.0, why == COPY, torch.zeros(1))


def users_of(each: int) -> Tensor:
    return torch.arange(USERS).repeat_interleave(each)


def numbered_material(made: int = MADE) -> Material:
    """Generated images are numbered from 100."""
    test = Unseen(numbered(users_of(8)), torch.arange(8 * USERS))
    return material(numbered(users_of(REAL)), numbered(users_of(made), 100), test)


@pytest.fixture
def opinion(monkeypatch) -> Callable[[Callable[[int, int], str]], None]:
    """Lets the judge leave out images for a reason that is a function of user and row."""

    def give(why: Callable[[int, int], str]) -> None:
        def look(self, made):
            return [seen(why(user, row)) for row, user in enumerate(made.users.tolist())]

        monkeypatch.setattr(Judge, "__call__", look)

    return give


def sifted(source: Material) -> Material:
    return with_sifted(source, SEEDS, CPU, lambda _: None)


# ---- which images


def test_only_good_images_are_taken_up_to_the_number_of_each():
    users = torch.arange(3).repeat(20)
    why = [COPY if row % 3 == 2 else SOMEBODY_ELSE if row % 2 else "" for row in range(60)]
    rows = sift(users, torch.tensor([5, 7, 4]), [seen(one) for one in why], torch.Generator().manual_seed(0))
    assert rows.tolist() == sorted({*rows.tolist()})
    assert users[rows].bincount(minlength=3).tolist() == [5, 7, 0]
    assert {why[row] for row in rows.tolist()} == {""}


@pytest.mark.parametrize("there", [0, 1, 3, 9])
def test_of_few_images_all_good_ones_are_taken(there):
    rows = sift(torch.ones(there, dtype=torch.int64), torch.tensor([4, 9]), [seen()] * there, torch.Generator())
    assert rows.tolist() == list(range(there))


def test_where_nothing_is_left_out_both_arms_are_the_same(opinion):
    """So that only what is left out makes a difference, and where nothing is, no arms are run to find none."""
    opinion(lambda user, row: "")
    source = sifted(numbered_material())
    for seed in SEEDS:
        assert torch.equal(*(numbers(training_set(arm, source, seed)) for arm in (AS_THEY_ARE, SIFTED)))
    assert source.sifted.left_out == {COPY: 0, SOMEBODY_ELSE: 0}
    assert times_sifted(source) == 0
    found = said(source)
    assert (found["word"], found["gain"], found["left"]) == (NO_DIFFERENCE, None, 15)
    assert found["sentence"] == f"sifting {NO_DIFFERENCE}: it leaves out none of 60 generated images"


def test_what_is_left_out_is_in_no_sifted_arm_and_counted(opinion):
    opinion(lambda user, row: (COPY, SOMEBODY_ELSE, "")[user] if row % 2 else "")
    source = sifted(numbered_material())
    assert source.sifted.left_out == {COPY: 10, SOMEBODY_ELSE: 10}
    assert source.sifted.wanted == 15
    apart = set()
    for seed in SEEDS:
        training = training_set(SIFTED, source, seed)
        taken = [number for number in numbers(training).tolist() if number >= 100]
        assert all(number % 2 == 0 or number >= 140 for number in taken)
        assert int((training.users == 2).sum()) == 2 * REAL
        apart.add(tuple(taken))
    assert len(apart) == len(SEEDS)


@pytest.mark.parametrize("made", [2, REAL])
def test_without_more_generated_than_real_images_it_is_not_tried(made, opinion):
    opinion(lambda user, row: "")
    source = numbered_material(made)
    assert sifted(source) is source
    assert not any(arm.sifted for arm in plan({1.0: 1.0}, False, times_sifted(source)))


def test_each_sifted_arm_has_one_beside_it_that_is_not_sifted():
    arms = plan({0.5: 0.5, 1.0: 1.0, 2.0: 2.0}, False, 0.8)
    tried = [arm for arm in arms if arm.sifted]
    assert set(arms) - set(tried) == set(plan({0.5: 0.5, 1.0: 1.0, 2.0: 2.0}, False))
    assert [arm.name for arm in tried[::2]] == ["real + 1 x sifted", "real + 1 x sifted + augmentation"]
    assert [(arm.exposure, arm.length) for arm in tried[:2]] == [("steps", 1), ("real images", 1.8)]
    assert not any(arm.sifted for arm in plan({1.0: 1.0}, True))


# ---- what is said


def made_up_trials(accuracy: Callable[[Arm], float], source: Material) -> Trials:
    rng, found = torch.Generator().manual_seed(0), {}
    users = source.held_out.images.users
    for arm in plan({1.0: 1.0}, False, 1.0):
        right = torch.rand(len(SEEDS), len(users), generator=rng) < accuracy(arm)
        found[arm] = {"held_out": torch.where(right, users, (users + 1) % USERS)}
    return Trials(found, [])


def said(source: Material, **trials: Trials) -> dict:
    return sifting(trials, "held_out", source.held_out, source)


@pytest.fixture
def tried(opinion) -> Material:
    """Sixty test images of each user, each a recording."""
    opinion(lambda user, row: SOMEBODY_ELSE if row % 4 == 0 else "")
    test = Unseen(numbered(users_of(60)), torch.arange(60 * USERS))
    return sifted(replace(numbered_material(), held_out=test))


@pytest.mark.parametrize(
    ("network", "ridge", "word", "leading"),
    [
        (0.3, 0.0, HELPS, "network"),
        (0.0, 0.3, HELPS, "ridge"),
        (-0.3, 0.0, HARMS, "network"),
        (0.0, 0.0, NO_DIFFERENCE, "network"),
        (0.3, -0.3, UNKNOWN, "network"),
    ],
)
def test_both_judges_have_one_word_for_it(network, ridge, word, leading, tried):
    trials = {
        name: made_up_trials(lambda arm, more=more: 0.5 + more * arm.sifted, tried)
        for name, more in (("network", network), ("ridge", ridge))
    }
    found = said(tried, **trials)
    assert (found["word"], found["judge"]) == (word, leading)
    begins = "whether sifting helps cannot be told" if word == UNKNOWN else f"sifting {word}"
    assert found["sentence"].startswith(begins)
    assert "of 60 generated images it leaves out 15 that look more like somebody else and 0 that" in found["sentence"]
    for one, more in zip(found["judges"], (network, ridge), strict=True):
        assert one["gain"]["mean"] == pytest.approx(one["sifted"] - one["unsifted"])
        assert one["gain"]["low"] < more < one["gain"]["high"]
    assert found["gain"] == next(one["gain"] for one in found["judges"] if one["judge"] == leading)
    json.dumps(found, allow_nan=False)


def test_chance_alone_is_seldom_called_sure(tried):
    """All arms equally good, and all of one recording right or wrong more often together: at most 1 of 20."""
    recordings = torch.arange(24).repeat_interleave(10)
    test = Unseen(numbered(recordings % USERS), recordings)
    sure = 0
    for trial in range(100):
        rng, both = torch.Generator().manual_seed(trial), {}
        for name in ("network", "ridge"):
            found, hard = {}, torch.rand(24, generator=rng)
            for arm in plan({1.0: 1.0}, False, 1.0):
                own = 0.2 * (torch.rand(24, generator=rng) - 0.5)
                right = torch.rand(len(SEEDS), 240, generator=rng) < (0.4 + 0.5 * hard + own).repeat_interleave(10)
                found[arm] = {"held_out": torch.where(right, recordings % USERS, (recordings + 1) % USERS)}
            both[name] = Trials(found, [])
        sure += sifting(both, "held_out", test, tried)["word"] != NO_DIFFERENCE
    assert sure <= 5


def test_that_no_judge_may_judge_is_said(tried):
    found = said(tried)
    assert (found["word"], found["gain"]) == (UNKNOWN, None)
    assert found["sentence"].startswith("whether sifting helps cannot be told: no judge may judge; of 60")


def test_a_sifted_arm_may_be_the_best_and_then_sifting_is_advised(tried):
    trials = made_up_trials(lambda arm: 0.9 if arm.sifted else 0.6, tried)
    one = judge("network", trials, "held_out", tried.held_out)
    assert (one.word, one.best.name.removesuffix(" + augmentation")) == (HELPS, "real + 1 x sifted")
    for word, more in ((HELPS, "which is better"), (NO_DIFFERENCE, f"as in the best arm ({one.best.name})")):
        assert advice_of({"word": word}, one) == [f"sift the generated images, {more}: {ADVICE}"]
    assert advice_of({"word": HARMS}, one) == advice_of(None, one) == []
    assert advice_of({"word": HELPS}, replace(one, may_judge=False)) == []


def test_that_sifting_takes_the_harm_away_is_no_excuse(tried):
    """The generated images as they are do harm, even if those that sifting leaves do not."""
    trials = made_up_trials(lambda arm: 0.2 if arm.times and not arm.sifted else 0.7, tried)
    assert judge("network", trials, "held_out", tried.held_out).word == HARMS


# ---- on images of which it is known what they are worth


@cache
def walkers(swapped: bool) -> Material:
    """Ten people, two recordings of each to train on, four generated ones, of which half may be of somebody else."""
    real, number = recorded(range(1, 11), 8, 32, 7)
    place = number % 8
    train, new, out = place < 2, (place >= 2) & (place < 6), place >= 6
    made = real.of(new)
    if swapped:
        of_another = number[new] % 2 == 0
        made = Labelled(made.images, torch.where(of_another, (made.users + 1) % 10, made.users))
    source = material(real.of(train), made, Unseen(real.of(out), number[out]), number[train])
    return sifted(source)


def by_ridge(source: Material) -> dict:
    arms = plan({1.0: 1.0}, False, times_sifted(source))
    trials = run_ridge([arm for arm in arms if arm.group == "with generated"], SEEDS, source)
    return said(source, ridge=trials)


def test_where_half_the_images_are_of_others_sifting_helps():
    found = by_ridge(walkers(swapped=True))
    assert found["word"] == HELPS
    assert found["sentence"].startswith("sifting helps: +")
    assert found["gain"]["low"] > 0
    assert found["left_out"][SOMEBODY_ELSE] > 0.3 * found["generated"]


def test_among_good_images_sifting_makes_no_difference():
    found = by_ridge(walkers(swapped=False))
    assert found["word"] == NO_DIFFERENCE
    assert abs(found["gain"]["mean"]) < 0.02


@pytest.mark.usefixtures("short_judgement")
@pytest.mark.parametrize("left", [0, 3], ids=["nobody", "all but one"])
def test_it_is_judged_though_none_are_left_for_a_user(left, opinion):
    """With `left` of four users' images."""
    opinion(lambda user, row: "" if user < left else SOMEBODY_ELSE)
    source = case("new recordings", range(1, 5), 16, 0, 1, 4)
    twice = source.generated.with_more(source.generated)
    source = replace(source, generated=twice, generated_files=source.generated_files * 2)
    found = evaluate(source, tiny_vae(tiny()), [], False, 0, CPU, lambda _: None)["results"]["held_out"]
    json.dumps(found, allow_nan=False)
    assert any("sifted" in arm["name"] for arm in found["arms"]) == (left > 0)
    assert found["sifting"]["left_out"] == {COPY: 0, SOMEBODY_ELSE: 20 * (4 - left)}
    assert (found["sifting"]["wanted"], found["sifting"]["left"]) == (40, 10 * left)
    if left:
        assert f"so that its arms have {10 * left} of the 40 wanted" in found["sifting"]["sentence"]
    else:
        assert found["sifting"]["sentence"].startswith("whether sifting helps cannot be told: no image is left; of 80")
