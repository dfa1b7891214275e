"""Laws of sifting: what is left out, how many are made in its place, and that what is left stays various."""

import pytest
import torch

from train.judge.augmented import COPY, ENOUGH, SOMEBODY_ELSE, Choice, Judge, Seen, at_most_of_each, clusters, spread
from train.judge.labelled import Labelled


def seen(why: str = "", place: float = 0.0) -> Seen:
    probability = 0.3 if why == SOMEBODY_ELSE else 0.5
    return Seen(probability, 0.4, 1.0, why == COPY, torch.tensor([place]))


def chosen(verdicts: list[str], per_user: int, sift: bool = True) -> tuple[Choice, list[int]]:
    """A choice for a single user, whose images get these verdicts in turn; and how many were made each time."""
    left = iter(verdicts)
    choice = Choice(1, per_user, sift)
    made, wanted = [], choice.first
    while wanted:
        assert wanted == [(0, sum(made) + number) for number in range(len(wanted))]
        made.append(len(wanted))
        wanted = choice.look_at(wanted, [seen(next(left), place) for place in range(made[-1])])
    return choice, made


def test_without_sifting_the_first_are_taken_whatever_they_are():
    choice, made = chosen([COPY, SOMEBODY_ELSE, ""], 3, sift=False)
    assert made == [3]
    assert set(choice.left_out().values()) == {""}


def test_as_many_are_made_as_will_bring_what_is_lacking():
    good, bad = [""], [SOMEBODY_ELSE]
    assert chosen(4 * good, 4)[1] == [4]
    assert chosen(3 * good + bad + 9 * good, 4)[1] == [4, 2]  # 1 lacks, and 3 of 4 are good
    assert chosen(10 * good + 10 * bad + 20 * good, 20)[1] == [20, 20]
    choice, made = chosen(6 * good + 2 * bad + 3 * bad + 9 * good, 8)
    assert made == [8, 3, 4]  # 2 lack, 6 of 8; 2 lack, 6 of 11
    assert sum(not why for why in choice.left_out().values()) == 8


@pytest.mark.parametrize("good", [0, 1, 3])
def test_twice_as_many_as_asked_for_are_made_at_most(good):
    choice, made = chosen(good * [""] + 100 * [COPY], 5)
    assert sum(made) == 10
    assert sum(not why for why in choice.left_out().values()) == good


def test_each_user_is_filled_up_by_itself():
    choice = Choice(2, 2, True)
    assert choice.look_at(choice.first, [seen(), seen(), seen(COPY), seen()]) == [(1, 2), (1, 3)]


def test_a_copy_is_left_out_even_of_the_right_user():
    assert seen(COPY).why_left_out == COPY
    assert seen(SOMEBODY_ELSE).why_left_out == SOMEBODY_ELSE
    assert seen().why_left_out == ""


def test_of_too_many_the_rare_kinds_stay():
    """Eight of ten passed: six alike, and two that are not. The first four would be alike."""
    places = [0.0, 0.1, 0.05, 0.02, 0.07, 9.0, -7.0, 0.01]
    choice = Choice(1, 4, True)
    choice.seen = {(0, number): seen(place=place) for number, place in enumerate(places)}
    why = choice.left_out()
    taken = [number for (_, number), reason in why.items() if not reason]
    assert len(taken) == 4
    assert {5, 6} <= set(taken)
    assert set(why.values()) == {"", ENOUGH}


def test_clusters_are_found_and_give_evenly():
    rng = torch.Generator().manual_seed(0)
    truth = torch.tensor([0] * 20 + [1] * 5 + [2] * 10 + [3] * 5 + [4] * 4)
    features = 10 * torch.eye(5)[truth] + 0.1 * torch.randn(44, 5, generator=rng)
    found = clusters(features)
    assert torch.equal(found, clusters(features))
    assert len({*zip(found.tolist(), truth.tolist(), strict=True)}) == len(found.unique()) == 5
    for count, shares in ((5, [1] * 5), (15, [3] * 5), (22, [5, 5, 4, 4, 4]), (30, [8, 5, 8, 5, 4]), (44, None)):
        taken = spread(features, count)
        assert taken == sorted(set(taken))
        assert len(taken) == count
        if shares:
            counts = truth[taken].bincount(minlength=5).tolist()
            assert sorted(counts) == sorted(shares)


@pytest.mark.parametrize("features", [torch.zeros(7, 3), torch.tensor([[1.0], [2.0]]), torch.ones(1, 4)])
def test_images_that_are_all_alike_or_few_can_be_spread(features):
    for count in range(1, len(features) + 1):
        assert len(spread(features, count)) == count


def test_parts_hold_few_enough_of_each_and_all_in_all():
    users = torch.tensor([0, 1, 0, 0, 1, 2, 0, 0])
    parts = at_most_of_each(users, 2)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 4, 5], [3, 6], [7]]


# ---- the judge


def coloured(per_user: int, seed: int) -> Labelled:
    """Noise on a colour for each of three users."""
    rng = torch.Generator().manual_seed(seed)
    users = torch.arange(3).repeat_interleave(per_user)
    images = torch.randint(0, 100, (3 * per_user, 3, 16, 16), generator=rng)
    images[torch.arange(len(users)), users] += 100
    return Labelled(images.to(torch.uint8), users)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(coloured(8, 0), torch.arange(24) // 2, 3, torch.device("cpu"))


def test_new_images_of_the_right_user_pass(judge):
    found = judge(coloured(4, 1))
    assert [one.why_left_out for one in found] == [""] * 12
    assert all(0 <= one.rival < one.probability <= 1 for one in found)


def test_copies_and_images_of_somebody_else_do_not(judge):
    new = coloured(2, 2)
    made = Labelled(torch.cat([judge.training.images[[0, 9]], new.images]), torch.tensor([0, 1, *(5 - new.users) % 3]))
    found = judge(made)
    assert [one.why_left_out for one in found[:2]] == [COPY, COPY]
    assert [one.distance for one in found[:2]] == pytest.approx([0, 0], abs=1e-2)
    assert [one.why_left_out for one in found[2:]] == [
        "" if asked == true else SOMEBODY_ELSE
        for asked, true in zip(made.users[2:].tolist(), new.users.tolist(), strict=True)
    ]


def test_some_users_may_be_asked_about_and_others_not(judge):
    """The users of a second round; and the answer does not depend on the others."""
    made = coloured(2, 3)
    alone, whole = judge(made.of(made.users == 1)), judge(made)[2:4]
    for one, other in zip(alone, whole, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert (one.distance, one.accused) == pytest.approx((other.distance, other.accused), abs=1e-5)
