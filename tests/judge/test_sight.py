"""What is said of a judge that recognises few real images."""

import pytest

from train.judge.interval import Figure
from train.judge.sight import doubts, is_blind


@pytest.mark.parametrize(
    ("mean", "half", "chance", "blind", "says"),
    [
        (0.1, 0.05, 0.083, True, "can tell nothing"),  # no more than by chance
        (0.2, 0.15, 0.083, True, "can tell nothing"),  # too few images to show that it is more
        (0.333, 0.12, 0.083, False, "wrong about most real images (33.3% recognised, 8.3% by chance)"),
        (0.6, 0.1, 0.083, False, ""),
        (0.6, 0.2, 0.5, True, "60.0% of real images, which is not above chance (50.0%)"),  # of two users
        (0.9, 0.05, 0.5, False, ""),
    ],
)
def test_a_judge_that_sees_little_is_doubted(mean, half, chance, blind, says):
    figure = Figure(mean, mean - half, mean + half, [])
    assert is_blind(figure, chance) == blind
    assert says in doubts(figure, chance)
    assert bool(doubts(figure, chance)) == bool(says)
