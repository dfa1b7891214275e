"""Laws of the intervals: they hold the truth as often as they say, whatever the chance is due to."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from train.judge.interval import Variance, between_seeds, over_recordings, over_seeds, student_quantile

EACH = 10  # images of a recording


def half(figure) -> float:
    return (figure.high - figure.low) / 2


# ---- Student's t


@pytest.mark.parametrize("p", [0.5, 0.75, 0.975, 0.999, 0.9999])
def test_the_quantiles_of_one_and_two_degrees_are_closed_forms(p):
    assert student_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-6, abs=1e-9)
    assert student_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(1 / (2 * p * (1 - p))), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("freedom", [1e6, 1e12, 1e300])
def test_with_many_degrees_the_quantile_is_the_normal_one(freedom):
    assert student_quantile(0.975, freedom) == pytest.approx(1.959963985, rel=1e-5)


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 3.7, 10.5, 59.0, 4321.0])
@pytest.mark.parametrize("p", [0.6, 0.975, 1 - 0.025 / 16, 1 - 1e-5])
def test_student_quantiles_are_those_of_scipy(freedom, p):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-6)


# ---- over recordings


def made(seeds: int, recordings: int, seed_chance: float, recording_chance: float, rng: torch.Generator) -> Tensor:
    """Values (S, N) around 0: each seed, each recording and each image adds its own."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    of_recordings = (recording_chance * draw(recordings)).repeat_interleave(EACH)
    return seed_chance * draw(seeds, 1) + of_recordings + 0.3 * draw(seeds, recordings * EACH)


@pytest.mark.parametrize(
    ("seeds", "recordings", "seed_chance", "recording_chance"),
    [(5, 36, 0.1, 0.1), (5, 36, 0.1, 1.0), (3, 36, 0.4, 0.1), (3, 12, 0.2, 0.5), (5, 4, 0.1, 1.0), (5, 36, 0.0, 0.5)],
)
def test_95_of_100_intervals_hold_the_truth(seeds, recordings, seed_chance, recording_chance):
    """Between 92 and 98.5 of them: Satterthwaite's formula is an approximation, and 1500 draws leave 1.7 points."""
    rng, trials, numbers = torch.Generator().manual_seed(0), 1500, torch.arange(recordings).repeat_interleave(EACH)
    held = 0
    for _ in range(trials):
        figure = over_recordings(made(seeds, recordings, seed_chance, recording_chance, rng), numbers)
        held += figure.low <= 0 <= figure.high
    assert 0.92 <= held / trials <= 0.985


def test_a_law_of_right_and_wrong_answers_is_covered_too():
    """Recognised or not, each recording with its own probability: the mean of those probabilities is held."""
    rng, trials, numbers, held = torch.Generator().manual_seed(1), 1000, torch.arange(30).repeat_interleave(EACH), 0
    for _ in range(trials):
        chance = torch.rand(30, generator=rng).sqrt()  # of mean 2/3
        right = torch.rand(5, 300, generator=rng) < chance.repeat_interleave(EACH)
        figure = over_recordings(right, numbers)
        held += figure.low <= 2 / 3 <= figure.high
    assert 0.92 <= held / trials <= 0.985


def test_images_of_one_recording_are_not_independent():
    """Ten images that go right or wrong together are one observation; the interval is sqrt(10) times as wide."""
    right = (torch.rand(1, 200, generator=torch.Generator().manual_seed(0)) < 0.7).repeat_interleave(EACH, dim=1)
    together = over_recordings(right, torch.arange(200).repeat_interleave(EACH))
    alone = over_recordings(right, torch.arange(2000))
    assert together.mean == alone.mean == pytest.approx(float(right.double().mean()))
    assert half(together) / half(alone) == pytest.approx(math.sqrt(EACH), rel=0.01)


def test_one_recording_for_each_image_is_the_t_interval():
    values = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).double()
    figure, oracle = over_recordings(values, torch.arange(40), least=-1.0), stats.ttest_1samp(values[0].numpy(), 0)
    low, high = oracle.confidence_interval(0.95)
    assert (figure.low, figure.high) == pytest.approx((low, high), rel=1e-6)


def test_many_equal_recordings_leave_the_t_interval_over_seeds():
    by_seed = [0.2, 0.5, 0.3, 0.45, 0.6]
    figure = over_recordings(torch.tensor(by_seed)[:, None].expand(5, 80), torch.arange(8).repeat_interleave(EACH))
    assert figure.seeds == pytest.approx(by_seed)
    expected = over_seeds(by_seed)
    assert (figure.mean, figure.low, figure.high) == pytest.approx((expected.mean, expected.low, expected.high))
    low, high = stats.t.interval(0.95, 4, expected.mean, stats.sem(by_seed))
    assert (expected.low, expected.high) == pytest.approx((low, high), rel=1e-6)


def test_comparisons_widen_and_a_better_variance_narrows_an_interval():
    values, numbers = made(3, 12, 0.1, 0.3, torch.Generator().manual_seed(0)), torch.arange(12).repeat_interleave(EACH)
    widths = [half(over_recordings(values, numbers, count)) for count in (1, 4, 16)]
    assert widths == sorted(set(widths))
    own = between_seeds(values)
    assert own.freedom == 2
    assert half(over_recordings(values, numbers, 1, own)) == widths[0]
    assert half(over_recordings(values, numbers, 1, Variance(own.value, 40))) < widths[0]
    assert half(over_recordings(values, numbers, 1, Variance(9 * own.value, 2))) > widths[0]


def test_without_any_variance_the_interval_is_a_point():
    figure = over_recordings(torch.ones(5, 60, dtype=torch.bool), torch.arange(6).repeat_interleave(EACH), 16)
    assert (figure.mean, figure.low, figure.high) == (1, 1, 1)
    assert over_seeds([0.25] * 3).high == over_seeds([0.25]).low == 0.25


def test_an_interval_does_not_depend_on_the_order_of_images():
    values, numbers = made(3, 12, 0.1, 0.3, torch.Generator().manual_seed(0)), torch.arange(12).repeat_interleave(EACH)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    one, other = over_recordings(values, numbers), over_recordings(values[:, order], numbers[order] * 3 + 5)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))
