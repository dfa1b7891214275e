"""Laws of what came of the trials: the learning curve, what generated images are worth, who gains."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.judge.made_up import material, numbered
from train.judge import material as judged
from train.judge.arms import CURVE, GENERATED, REAL, Arm, training_set
from train.judge.interval import Figure
from train.judge.results import by_user, learning_curve, per_user, real_images_for, worth
from train.judge.trials import Trials
from train.judge.verdict import Judgement

USERS, PER_USER = 8, 5
MORE = Arm("real + 1 x generated", "with generated", times=1.0)


def figure(mean: float) -> Figure:
    return Figure(mean, mean - 0.01, mean + 0.01, [mean])


def made_up(per_user: int = PER_USER) -> judged.Material:
    users = torch.arange(USERS).repeat_interleave(per_user)
    test = judged.TestSet(numbered(users), torch.arange(len(users)))
    return material(numbered(users), numbered(users), test)


def judgement(**accuracies: float) -> Judgement:
    """Accuracies of the arms, by name: q25, q50, q75, real, more, alone."""
    arms = dict(zip(("q25", "q50", "q75", "real", "more", "alone"), (*CURVE, REAL, MORE, GENERATED), strict=True))
    accuracy = {arms[name]: figure(mean) for name, mean in accuracies.items()}
    gains = {MORE: figure(accuracies["more"] - accuracies["real"])}
    return Judgement("network", "", True, "", 0.1, accuracy, gains, REAL, MORE)


# ---- what the images are worth


@pytest.mark.parametrize(
    ("accuracy", "images"),
    [
        (0.5, 100), (0.7, 200), (0.8, 400), (0.6, 150), (0.75, 300), (0.25, 50), (0.0, 0), (0.81, None), (1.0, None),
    ],
)  # fmt: skip
def test_the_learning_curve_says_how_many_real_images_reach_an_accuracy(accuracy, images):
    assert real_images_for(accuracy, [(100, 0.5), (200, 0.7), (400, 0.8)]) == pytest.approx(images)


def test_a_curve_that_falls_by_chance_is_read_from_what_was_reached():
    curve = [(100, 0.6), (200, 0.5), (300, 0.7)]
    assert real_images_for(0.6, curve) == 100
    assert real_images_for(0.55, curve) == pytest.approx(550 / 6)
    assert 100 < real_images_for(0.65, curve) == pytest.approx(200)
    assert real_images_for(0.3, [(100, 0.6), (200, 0.6)]) == 50
    assert real_images_for(0.0, [(100, 0.0), (200, 0.5)]) == pytest.approx(100, abs=100)


@pytest.mark.parametrize("per_user", [1, 2, 5, 20])
def test_the_curve_counts_the_images_that_were_trained_on(per_user):
    """The quarter of five images is one, and of one image, too."""
    source, one = made_up(per_user), judgement(q25=0.4, q50=0.5, q75=0.6, real=0.7, more=0.8, alone=0.3)
    points = learning_curve(one, source)
    assert [point["images"] for point in points] == [len(training_set(arm, source, 0)) for arm in (*CURVE, REAL)]
    assert [point["share"] for point in points] == [0.25, 0.5, 0.75, 1]
    assert [point["accuracy"]["mean"] for point in points] == [0.4, 0.5, 0.6, 0.7]


def test_what_generated_images_are_worth_is_said():
    source = made_up(20)
    before = worth(judgement(q25=0.4, q50=0.5, q75=0.6, real=0.7, more=0.55, alone=0.2), source)
    assert before["times"] == pytest.approx(0.625)
    assert "reaches 55.0%, as about 100 of the 160 real images do alone" in before["sentence"]
    assert before["sentence"].endswith("generated images alone reach 20.0%, as about 20 of the real ones do")
    beyond = worth(judgement(q25=0.4, q50=0.5, q75=0.6, real=0.7, more=0.8, alone=0.75), source)
    assert beyond["times"] is None
    assert "beyond the learning curve's end: 160 real images reach 70.0%" in beyond["sentence"]
    assert beyond["sentence"].endswith("as more than all of the real ones do")
    assert (beyond["arm"], beyond["accuracy"], beyond["judge"]) == (MORE.name, 0.8, "network")


def test_what_images_are_worth_is_read_at_equal_steps_without_augmentation():
    one = judgement(q25=0.4, q50=0.5, q75=0.6, real=0.7, more=0.65, alone=0.2)
    better = [replace(MORE, augmented=True), replace(MORE, length=2.0, exposure="real images")]
    best = replace(MORE, times=2.0, name="best")
    gains = one.gains | {arm: figure(0.2) for arm in (*better, best)}
    accuracy = one.accuracy | {arm: figure(0.9) for arm in better} | {best: figure(0.66)}
    assert worth(replace(one, accuracy=accuracy, gains=gains), made_up())["arm"] == "best"


# ---- who gains


def test_the_share_that_is_right_is_counted_by_user():
    users = torch.tensor([0, 2, 2, 0, 2, 2])
    right = torch.tensor([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    found = per_user(right, users, 4)
    assert found[:, [0, 2]].tolist() == [[0.5, 0.75], [0, 0.25]]
    assert found[:, [1, 3]].isnan().all()


def answers(rights: Tensor, users: Tensor) -> Tensor:
    return torch.where(rights, users, (users + 1) % USERS)


def who_gains(real: Tensor, more: Tensor, source: judged.Material, test: judged.TestSet | None = None) -> dict:
    """Of right answers (S, N) in the arms REAL and MORE."""
    test = test or source.held_out
    made = source.generated.users
    found = {
        REAL: {"t": answers(real, test.images.users), "generated": made.expand(len(real), -1)},
        MORE: {"t": answers(more, test.images.users)},
    }
    one = judgement(real=0.5, more=0.6)
    return by_user(one, {"network": Trials(found, [])}, "t", test, source)


def test_each_user_has_a_row_with_its_own_gain():
    source = made_up()
    users = source.held_out.images.users
    real, more = (users >= 2).expand(3, -1), (users >= 1).expand(3, -1)
    found = who_gains(real, more, source)
    assert [row["name"] for row in found["users"]] == [f"ID{number}" for number in range(1, 9)]
    assert [row["gain"] for row in found["users"]] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert [row["real"] for row in found["users"]] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert {row["images"] for row in found["users"]} == {PER_USER}
    assert {row["right_person"] for row in found["users"]} == {1}
    weakest = found["weakest_quarter"]
    assert weakest["users"] == ["ID1", "ID2"]
    assert (weakest["real"]["mean"], weakest["with_generated"]["mean"], weakest["gain"]["mean"]) == (0, 0.5, 0.5)


def test_a_users_absence_is_no_error():
    """--test_dir has users 3 and 5 only, and nothing was generated for user 5."""
    source = made_up()
    source = replace(source, generated=source.generated.of(source.generated.users != 5))
    users = torch.tensor([3, 3, 5])
    test = judged.TestSet(numbered(users), torch.arange(3))
    found = who_gains(torch.tensor([[True, False, False]] * 2), torch.tensor([[True, True, False]] * 2), source, test)
    assert [(row["name"], row["images"], row["gain"]) for row in found["users"]] == [("ID4", 2, 0.5), ("ID6", 1, 0)]
    assert [row["right_person"] for row in found["users"]] == [1, None]
    assert found["weakest_quarter"]["users"] == ["ID6"]


def test_a_seeds_bad_luck_does_not_make_a_user_weak():
    """All users equally good, and both arms: chosen and judged by the same seed, the weakest would seem to gain."""
    source, rng, gains, lows = made_up(20), torch.Generator().manual_seed(0), [], []
    count = len(source.held_out.images)
    for _ in range(40):
        real, more = (torch.rand(5, count, generator=rng) < 0.7 for _ in range(2))
        weakest = who_gains(real, more, source)["weakest_quarter"]
        gains.append(weakest["gain"]["mean"])
        lows.append(weakest["real"]["mean"])
    assert sum(gains) / 40 == pytest.approx(0, abs=0.02)
    assert sum(lows) / 40 == pytest.approx(0.7, abs=0.02)


def test_with_a_single_seed_it_names_the_weakest_itself():
    source = made_up()
    users = source.held_out.images.users
    found = who_gains((users != 6)[None], (users >= 0)[None], source)
    assert found["weakest_quarter"]["users"] == ["ID7"]
    assert found["weakest_quarter"]["gain"]["mean"] == 1


def test_who_is_recognised_as_rarely_is_named_as_well():
    """Of five images each, users 1 and 5 miss one, and user 3 misses two; a quarter of eight users are two."""
    source = made_up()
    users = source.held_out.images.users
    number = torch.arange(len(users)) % PER_USER
    right = ~((users == 1) & (number < 1) | (users == 5) & (number < 1) | (users == 3) & (number < 2))
    weakest = who_gains(right.expand(3, -1), (users >= 0).expand(3, -1), source)["weakest_quarter"]
    assert weakest["users"] == ["ID4", "ID2", "ID6"]
    assert weakest["real"]["mean"] == pytest.approx((0.6 + 0.8 + 0.8) / 3)


def test_where_all_are_recognised_alike_nobody_is_the_weakest():
    source = made_up()
    users = source.held_out.images.users
    weakest = who_gains((users < 0).expand(3, -1), (users >= 0).expand(3, -1), source)["weakest_quarter"]
    assert len(weakest["users"]) == USERS
