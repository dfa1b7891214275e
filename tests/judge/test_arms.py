"""Laws of the arms: what is compared, with which images, and for how long."""

import pytest
import torch
from torch import Tensor

from tests.judge.made_up import material, numbered, numbers
from train.judge import material as judged
from train.judge.arms import CURVE, GENERATED, REAL, RECONSTRUCTED, Arm, plan, times_for, training_set
from train.judge.labelled import Labelled
from train.judge.network import BATCH, batches

CPU = torch.device("cpu")
REAL_COUNTS, MADE_COUNTS = (4, 8, 5), (16, 32, 20)
FIRST_MADE = 100


def users_of(counts) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def made_up(real=REAL_COUNTS, made=MADE_COUNTS) -> judged.Material:
    """Real images are numbered from 0, generated ones from 100, reconstructions from 50."""
    training = numbered(users_of(real))
    test = judged.TestSet(training, torch.arange(len(training)))
    decoded = numbered(users_of(real), 50)
    return material(training, numbered(users_of(made), FIRST_MADE), test, reconstructed=decoded, users=len(real))


def arms_of(real, made, quick=False) -> list[Arm]:
    return plan(times_for(torch.tensor(real), torch.tensor(made)), quick)


# ---- which arms


def test_the_full_plan_has_every_arm_that_is_asked_for():
    arms = arms_of(REAL_COUNTS, MADE_COUNTS)
    assert len(set(arms)) == len(arms) == 4 + 16 + 2 + 3
    without = [arm for arm in arms if arm.group == "without generated"]
    assert {(arm.augmented, arm.length) for arm in without} == {(False, 1), (False, 5), (True, 1), (True, 5)}
    assert all((arm.real, arm.times, arm.reconstructed) == (1, 0, False) for arm in without)
    beside = [arm for arm in arms if arm.group == "with generated"]
    assert {(arm.times, arm.augmented, arm.exposure) for arm in beside} == {
        (times, augmented, exposure)
        for times in (0.5, 1, 2, 4) for augmented in (False, True) for exposure in ("steps", "real images")
    }  # fmt: skip
    assert all(arm.real == 1 and not arm.reconstructed for arm in beside)
    assert {GENERATED, RECONSTRUCTED, REAL, *CURVE} < set(arms)
    assert [arm.real for arm in CURVE] == [0.25, 0.5, 0.75]
    assert (GENERATED.real, GENERATED.times, GENERATED.length, RECONSTRUCTED.length) == (0, 1, 1, 1)


def test_the_quick_plan_has_one_share_of_generated_images_and_no_curve():
    arms = arms_of(REAL_COUNTS, MADE_COUNTS, quick=True)
    assert len(set(arms)) == len(arms) == 4 + 4 + 2
    assert {arm.times for arm in arms if arm.group == "with generated"} == {1}
    assert {arm.length for arm in arms if arm.group == "without generated"} == {1, 2}
    assert not set(CURVE) & set(arms)
    few = arms_of(REAL_COUNTS, (2, 4, 3), quick=True)
    assert {arm.times for arm in few if arm.group == "with generated"} == {0.5}


def test_names_tell_all_arms_but_those_of_other_exposure_apart():
    arms = arms_of(REAL_COUNTS, MADE_COUNTS)
    assert len({(arm.name, arm.exposure) for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("made", "times"),
    [
        (MADE_COUNTS, {0.5: 8 / 17, 1: 1, 2: 2, 4: 4}),  # a half of five is two
        ((15, 30, 18), {0.5: 8 / 17, 1: 1, 2: 2, 4: 63 / 68 * 4}),
        ((8, 16, 9), {0.5: 8 / 17, 1: 1, 2: 33 / 17}),
        ((0, 9, 2), {0.647: 7 / 17}),  # 3, 5 and 3 are asked for
        ((1, 0, 0), {0.059: 1 / 17}),
        ((0, 900, 0), {52.941: 424 / 17}),
    ],
)
def test_an_arm_is_left_out_where_its_images_are_not_there(made, times):
    """Unless more than nine tenths are. Where no arm has its images, what there is in all sets the share."""
    found = times_for(torch.tensor(REAL_COUNTS), torch.tensor(made))
    assert list(found) == pytest.approx(list(times), abs=1e-9)
    assert list(found.values()) == pytest.approx(list(times.values()))


# ---- which images


@pytest.mark.parametrize("arm", arms_of(REAL_COUNTS, MADE_COUNTS), ids=lambda arm: f"{arm.name}, {arm.exposure}")
def test_each_user_has_its_share_of_each_kind_of_image(arm):
    found = training_set(arm, made_up(), seed=3)
    known, real = numbers(found), torch.tensor(REAL_COUNTS)
    made = known >= FIRST_MADE
    assert len(known.unique()) == len(known)
    assert torch.equal(found.users[made].bincount(minlength=3), (arm.times * real).round().long())
    assert torch.equal(found.users[~made].bincount(minlength=3), (arm.real * real).round().long())
    assert torch.equal(found.users[made], users_of(MADE_COUNTS)[known[made] - FIRST_MADE])
    of_real = known[~made] - (50 if arm.reconstructed else 0)
    assert torch.equal(found.users[~made], users_of(REAL_COUNTS)[of_real])


def test_the_seed_draws_which_images_where_not_all_are_taken():
    source = made_up()
    for arm in (CURVE[1], GENERATED, Arm("", "with generated", times=1.0)):
        first = numbers(training_set(arm, source, 0))
        assert torch.equal(numbers(training_set(arm, source, 0)), first)
        assert not torch.equal(numbers(training_set(arm, source, 1)), first)
    assert torch.equal(numbers(training_set(REAL, source, 0)), numbers(source.training))


def test_every_user_keeps_an_image_on_the_learning_curve():
    found = training_set(CURVE[0], made_up((1, 2, 8)), 0)
    assert found.users.bincount(minlength=3).tolist() == [1, 1, 2]


def test_users_without_generated_images_have_none_in_an_arm():
    source = made_up(made=(0, 8, 3))
    assert training_set(GENERATED, source, 0).users.bincount(minlength=3).tolist() == [0, 8, 3]
    beside = training_set(Arm("", "with generated", times=1.0), source, 0)
    assert beside.users.bincount(minlength=3).tolist() == [4, 16, 8]


# ---- for how long


def draws(arm: Arm, source: judged.Material, steps: int) -> Tensor:
    """How often each real image is seen in an arm, where the arm `real` takes so many steps."""
    training = training_set(arm, source, 0)
    known = Labelled(training.images, numbers(training))
    seen = [users for _, users in batches(known, round(steps * arm.length), False, 0, CPU)]
    assert sum(map(len, seen)) == round(steps * arm.length) * BATCH
    return torch.cat(seen).bincount(minlength=256)[: len(source.training)]


@pytest.mark.parametrize("made", [MADE_COUNTS, (15, 30, 18), (17, 0, 0), (150, 0, 0), (1, 0, 0), (0, 9, 2)])
def test_at_equal_exposure_each_real_image_is_seen_as_often_as_in_real(made):
    """Also where generated images are missing for some users, or for most."""
    source = made_up(made=made)
    arms, steps = arms_of(REAL_COUNTS, made), 40
    expected = draws(REAL, source, steps).float().mean()
    for arm in arms:
        if arm.group == "with generated" and arm.exposure == "real images":
            often = draws(arm, source, steps).float()
            assert often.mean() == pytest.approx(float(expected), rel=0.02), arm
            assert often.max() - often.min() <= 1


def test_at_equal_steps_real_images_are_diluted():
    source, steps = made_up(), 40
    expected = draws(REAL, source, steps).float().mean()
    for arm in arms_of(REAL_COUNTS, MADE_COUNTS):
        if arm.group == "with generated" and arm.exposure == "steps":
            assert arm.length == 1
            often = draws(arm, source, steps).float()
            assert often.mean() == pytest.approx(float(expected) / (1 + arm.times), rel=0.1), arm


def test_oversampled_real_images_get_the_steps_of_the_longest_arm():
    arms = arms_of(REAL_COUNTS, MADE_COUNTS)
    longest = max(arm.length for arm in arms if arm.group == "with generated")
    assert {arm.length for arm in arms if "oversampled" in arm.name} == {longest}
