"""Laws of the verdict: made-up answers of judges give each of its four words."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from tests.judge.made_up import numbered
from train.judge.arms import CURVE, GENERATED, REAL, RECONSTRUCTED, Arm, plan
from train.judge.interval import Figure
from train.judge.labelled import Labelled
from train.judge.material import TestSet as Unseen
from train.judge.trials import Trials
from train.judge.verdict import HARMS, HELPS, NO_DIFFERENCE, UNKNOWN, Judgement, judge, verdict, word_for

USERS, RECORDINGS, EACH, SEEDS = 8, 24, 10, 5
RECORDING = torch.arange(RECORDINGS).repeat_interleave(EACH)
TEST = Unseen(Labelled(numbered(RECORDING % USERS).images, RECORDING % USERS), RECORDING)
PLANS = {
    "network": plan({0.5: 0.5, 1: 1, 2: 2, 4: 4}, quick=False),
    "ridge": [arm for arm in plan({1: 1}, quick=True) if arm.length == 1],
}


def answers(accuracy: float, rng: torch.Generator) -> Tensor:
    """(S, N): each image is recognised or not, at random; a wrong answer is the next user."""
    right = torch.rand(SEEDS, len(RECORDING), generator=rng) < accuracy
    return torch.where(right, TEST.images.users, (TEST.images.users + 1) % USERS)


def judged(without: float, with_generated: float | dict, name: str = "network", seed: int = 0) -> Judgement:
    """Of arms that reach these accuracies; `with_generated` may give them by share, the others as `without`."""
    rng, found = torch.Generator().manual_seed(seed), {}
    for arm in PLANS[name]:
        reached = without
        if arm.group == "with generated":
            given = with_generated
            reached = given.get(arm.times, without) if isinstance(given, dict) else given
        found[arm] = {"held_out": answers(reached, rng)}
    return judge(name, Trials(found, []), "held_out", TEST)


# ---- one judge


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(
    ("without", "with_generated", "word"),
    [
        (0.7, 0.9, HELPS),
        (0.7, 0.4, HARMS),
        (0.7, 0.7, NO_DIFFERENCE),
        (1 / USERS, 0.9, UNKNOWN),  # at chance
        (0.998, 0.9, UNKNOWN),  # saturated
    ],
)
def test_each_word_has_its_pattern_of_answers(name, without, with_generated, word):
    one = judged(without, with_generated, name)
    assert one.word == word
    assert one.may_judge == (word != UNKNOWN)
    assert one.chance == pytest.approx(1 / USERS, abs=0.01)
    assert one.says.startswith("it may judge" if one.may_judge else "it may not judge")
    assert "\n" not in one.says
    assert one.baseline.group == "without generated"
    assert one.best.group == "with generated"
    assert set(one.gains) == {arm for arm in PLANS[name] if arm.group == "with generated"}
    assert set(one.accuracy) == set(PLANS[name])
    said = verdict([one])
    assert said["word"] == word
    assert said["sentence"].startswith(word)
    assert (said["gain"] is None) == (word == UNKNOWN)


def test_a_judge_that_is_wrong_about_most_real_images_says_so():
    """Whatever it finds is true of it, but little is."""
    for with_generated, word in ((0.33, NO_DIFFERENCE), (0.45, HELPS)):
        one = judged(0.33, with_generated)
        assert one.word == word
        for said in (one.says, verdict([one])["sentence"]):
            assert "it is wrong about most real images" in said
    assert "wrong about most" not in verdict([judged(0.7, 0.7)])["sentence"]


def test_the_gain_is_over_the_best_arm_without_generated_images():
    """Not over `real` alone: what augmentation brings by itself is no merit of generated images."""
    rng = torch.Generator().manual_seed(0)
    found = {arm: {"held_out": answers(0.9 if arm.augmented else 0.6, rng)} for arm in PLANS["network"]}
    one = judge("network", Trials(found, []), "held_out", TEST)
    assert one.baseline.augmented
    assert one.word == NO_DIFFERENCE
    expected = one.accuracy[one.best].mean - one.accuracy[one.baseline].mean
    assert one.gain.mean == pytest.approx(expected)


def test_a_gain_is_compared_image_by_image():
    """The same hard recordings are hard in both arms, which no gain's interval suffers from."""
    hard = (RECORDING % 2 == 0) | (torch.arange(len(RECORDING)) % EACH == 3)
    right, better = TEST.images.users, TEST.images.users.clone()
    wrong = (right + 1) % USERS
    better = torch.where(hard & (torch.arange(len(RECORDING)) % EACH != 3), wrong, right)
    found = {}
    for arm in PLANS["network"]:
        said = better if arm.group == "with generated" else torch.where(hard, wrong, right)
        found[arm] = {"held_out": said.expand(SEEDS, -1)}
    one = judge("network", Trials(found, []), "held_out", TEST)
    assert one.word == HELPS
    assert one.gain.mean == pytest.approx(0.1)
    assert one.gain.high - one.gain.low < 0.01
    figure = one.accuracy[one.baseline]
    assert figure.high - figure.low > 0.3


def test_one_share_that_helps_is_help():
    one = judged(0.6, {4: 0.85})
    assert (one.word, one.best.times) == (HELPS, 4)


def test_harm_by_too_many_images_alone_is_no_harm():
    """As many as real ones are what people do; and of those all four arms have to lose."""
    assert judged(0.7, {4: 0.3}).word == NO_DIFFERENCE
    assert judged(0.7, {1: 0.3}).word == HARMS
    assert judged(0.7, {1: 0.3, 2: 0.9}).word == HELPS


def gain_of(low: float, high: float) -> Figure:
    return Figure((low + high) / 2, low, high, [])


@pytest.mark.parametrize("spared", range(4))
def test_harm_needs_a_sure_loss_at_both_exposures_and_both_ways(spared):
    arms = [arm for arm in PLANS["network"] if arm.times == 1 and arm.group == "with generated"]
    assert len(arms) == 4
    gains = {arm: gain_of(-0.2, -0.1) for arm in arms}
    assert word_for(gains, arms[0]) == HARMS
    gains[arms[spared]] = gain_of(-0.2, 0.01)
    assert word_for(gains, arms[spared]) == NO_DIFFERENCE
    gains[arms[spared]] = gain_of(0.01, 0.2)
    assert word_for(gains, arms[spared]) == HELPS


def test_without_as_many_generated_as_real_ones_the_nearest_share_counts():
    half, double = (Arm(f"{times}", "with generated", times=times) for times in (0.5, 3.0))
    gains = {half: gain_of(-0.2, -0.1), double: gain_of(-0.2, 0.0)}
    assert word_for(gains, double) == HARMS


def test_few_recordings_make_a_judge_unable():
    """Two recordings, of which one is right: no gain could be told from chance."""
    users, recordings = torch.tensor([0] * 10 + [1] * 10), torch.tensor([0] * 10 + [1] * 10)
    test = Unseen(Labelled(numbered(users).images, users), recordings)
    found = {}
    for arm in PLANS["network"]:
        said = users if arm.group == "with generated" else torch.tensor([0] * 14 + [1] * 6)
        found[arm] = {"held_out": said.expand(SEEDS, -1)}
    assert judge("network", Trials(found, []), "held_out", test).word == UNKNOWN


@pytest.mark.parametrize("subset", [1, 2, USERS])
def test_a_test_set_of_some_users_is_judged_by_the_same_chance(subset):
    """--test_dir may hold one of eight users; who recognises half of its images is above chance."""
    rng, users = torch.Generator().manual_seed(0), RECORDING % subset
    test = Unseen(Labelled(numbered(users).images, users), RECORDING)
    found = {}
    for arm in PLANS["network"]:
        right = torch.rand(SEEDS, len(users), generator=rng) < (0.8 if arm.group == "with generated" else 0.5)
        anyone = torch.randint(USERS, users.shape, generator=rng)
        found[arm] = {"held_out": answers(0.5, rng), "test_dir": torch.where(right, users, anyone)}
    one = judge("network", Trials(found, []), "test_dir", test)
    assert one.word == HELPS
    assert one.chance == pytest.approx(1 / USERS, abs=0.02)


def test_to_say_one_user_always_is_no_better_than_chance():
    """Even where most images are of that user."""
    users = torch.where(RECORDING % 4 == 0, RECORDING % USERS, 3)
    test = Unseen(Labelled(numbered(users).images, users), RECORDING)
    found = {arm: {"held_out": torch.full((SEEDS, len(users)), 3)} for arm in PLANS["network"]}
    one = judge("network", Trials(found, []), "held_out", test)
    assert one.accuracy[one.baseline].mean == one.chance == 0.75
    assert one.word == UNKNOWN


# ---- two judges


@pytest.mark.parametrize(
    ("network", "ridge", "word", "leading"),
    [
        ((0.7, 0.9), (0.6, 0.85), HELPS, "network"),
        ((0.7, 0.7), (0.6, 0.85), HELPS, "ridge"),
        ((0.7, 0.9), (0.6, 0.6), HELPS, "network"),
        ((0.7, 0.4), (0.6, 0.6), HARMS, "network"),
        ((0.7, 0.7), (0.6, 0.6), NO_DIFFERENCE, "network"),
        ((0.7, 0.9), (0.6, 0.3), UNKNOWN, "network"),  # they contradict each other
        ((0.998, 0.9), (0.6, 0.85), HELPS, "ridge"),  # the first is saturated
        ((0.125, 0.9), (0.6, 0.3), HARMS, "ridge"),  # the first is at chance
        ((0.7, 0.9), (0.125, 0.3), HELPS, "network"),
        ((0.998, 0.9), (0.125, 0.3), UNKNOWN, "network"),
    ],
)
def test_the_judges_find_one_word(network, ridge, word, leading):
    both = [judged(*network, "network"), judged(*ridge, "ridge", seed=1)]
    said = verdict(both)
    assert (said["word"], said["judge"]) == (word, leading)
    assert said["sentence"].startswith(f"{word}: ")
    assert "\n" not in said["sentence"]
    lead = both[0] if leading == "network" else both[1]
    assert (said["arm"], said["baseline"]) == (lead.best.name, lead.baseline.name)
    assert said["gain"] == (asdict(lead.gain) if lead.may_judge else None)
    assert "ridge regression on row spectra" in said["sentence"]
    assert "the convolutional network" in said["sentence"]


def test_arms_without_a_say_do_not_change_the_verdict():
    """Reconstructions, generated images alone and the learning curve are shown, and not compared."""
    one = judged(0.7, 0.7)
    assert not {GENERATED, RECONSTRUCTED, *CURVE} & {one.baseline, one.best, *one.gains}
    assert one.baseline == REAL or one.baseline.group == "without generated"


@pytest.mark.parametrize("name", PLANS)
def test_chance_alone_is_seldom_called_help(name):
    """All arms equally good, and all of one recording right or wrong more often together: at most 1 of 20."""
    helped = 0
    for seed in range(60):
        rng, found = torch.Generator().manual_seed(seed), {}
        hard = torch.rand(RECORDINGS, generator=rng).repeat_interleave(EACH)
        for arm in PLANS[name]:
            own = 0.2 * (torch.rand(RECORDINGS, generator=rng) - 0.5).repeat_interleave(EACH)
            right = torch.rand(SEEDS, len(RECORDING), generator=rng) < (0.4 + 0.5 * hard + own)
            found[arm] = {"held_out": torch.where(right, TEST.images.users, (TEST.images.users + 1) % USERS)}
        helped += judge(name, Trials(found, []), "held_out", TEST).word == HELPS
    assert helped <= 3
