"""Laws of drawing images user by user."""

import pytest
import torch

from train.judge.labelled import Labelled, draw_of_each

USERS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 2, 1, 1])  # 3, 5 and 4 of users 0, 1 and 2; none of user 3


def drawn(counts: list[int], seed: int = 0) -> torch.Tensor:
    return draw_of_each(USERS, torch.tensor(counts), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("counts", [[2, 3, 4, 0], [0, 0, 0, 0], [1, 0, 2, 7], [9, 9, 9, 9]])
def test_each_user_has_its_count_or_all_there_are(counts):
    rows = drawn(counts)
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, rows.sort().values)
    there = torch.tensor([3, 5, 4, 0])
    assert torch.equal(USERS[rows].bincount(minlength=4), torch.minimum(torch.tensor(counts), there))


def test_the_drawing_is_a_function_of_the_generator():
    assert torch.equal(drawn([2, 2, 2, 0]), drawn([2, 2, 2, 0]))
    assert len({tuple(drawn([2, 2, 2, 0], seed).tolist()) for seed in range(10)}) > 3


def test_every_image_is_drawn_equally_often():
    often = torch.zeros(len(USERS))
    for seed in range(600):
        often[drawn([1, 3, 2, 0], seed)] += 1
    expected = 600 * torch.tensor([1 / 3, 3 / 5, 2 / 4])[USERS]
    assert (often - expected).abs().max() < 4.5 * (600 / 4) ** 0.5


def test_images_and_users_stay_together():
    one = Labelled(torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1), torch.arange(12))
    both = one.of(torch.arange(12) % 3 == 1).with_more(one.of(torch.tensor([7, 7])))
    assert both.users.tolist() == [1, 4, 7, 10, 7, 7]
    assert torch.equal(both.images.flatten().long(), both.users)
    assert len(both) == 6
