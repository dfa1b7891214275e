"""Laws of the distances between two sets of images, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from train.judge import distances as d
from train.judge.distances import Seen


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_with(mean: Tensor, factor: Tensor, count: int, seed: int = 0) -> Tensor:
    """`count` vectors whose sample mean is `mean` (D,) and whose sample covariance is factor factor^T (D, R)."""
    z = draw(count, factor.shape[1], seed=seed)
    q = torch.linalg.qr(z - z.mean(0)).Q * math.sqrt(count - 1)
    return mean + q @ factor.T


def closed_form(mean: Tensor, other_mean: Tensor, a: Tensor, b: Tensor) -> float:
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + a.trace() + b.trace() - 2 * root)


@pytest.mark.parametrize(("dimensions", "rank", "counts"), [(5, 5, (40, 60)), (30, 4, (9, 200)), (30, 6, (12, 12))])
def test_frechet_distance_equals_its_closed_form(dimensions, rank, counts):
    """Also of fewer images than features, whose covariances are singular."""
    means, factors = draw(2, dimensions, seed=1), draw(2, dimensions, rank, seed=2)
    a, b = (sample_with(means[i], factors[i], counts[i], seed=i) for i in range(2))
    expected = closed_form(*means, *(factor @ factor.T for factor in factors))
    assert d.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert d.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_samples_approaches_that_of_gaussians():
    scale, other_scale = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 1.0, 0.5])
    a, b = draw(40_000, 3, seed=1) * scale, draw(40_000, 3, seed=2) * other_scale + 1
    assert d.frechet_distance(a, b) == pytest.approx(3 + 1 + 1, rel=0.02)


def test_equal_sets_have_no_frechet_distance_and_shifted_ones_their_shift():
    a = draw(50, 80)
    assert d.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert d.frechet_distance(a.float(), a.float() + 3) == pytest.approx(80 * 9, rel=1e-5)
    assert d.frechet_distance(torch.ones(4, 3), torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)


def moments(mean: float, std: float) -> Tensor:
    """E x^j of a Gaussian, j = 0 ... 3."""
    return torch.tensor([1, mean, mean**2 + std**2, mean**3 + 3 * mean * std**2], dtype=torch.float64)


def test_kernel_distance_is_unbiased():
    """(x y + 1)^3 = sum_j binom(3, j) x^j y^j, so MMD^2 = sum_j binom(3, j) (E x^j - E y^j)^2; of few samples, too."""
    a, b = 0.3 + 0.8 * draw(4000, 4, 1, seed=1), -0.2 + 1.1 * draw(4000, 5, 1, seed=2)
    values = torch.tensor([d.kernel_distance(x, y) for x, y in zip(a, b, strict=True)])
    binomial = torch.tensor([1, 3, 3, 1])
    expected = float((binomial * (moments(0.3, 0.8) - moments(-0.2, 1.1)) ** 2).sum())
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(len(values)))
    large = d.kernel_distance(0.3 + 0.8 * draw(3000, 1, seed=3), -0.2 + 1.1 * draw(3000, 1, seed=4))
    assert large == pytest.approx(expected, rel=0.15)


def test_kernel_distance_equals_its_sum_over_pairs():
    a, b = draw(4, 3, seed=1), draw(3, 3, seed=2)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float(x @ y / 3 + 1) ** 3

    own = [sum(kernel(x, y) for x in z for y in z if x is not y) for z in (list(a), list(b))]
    between = sum(kernel(x, y) for x in a for y in b)
    assert d.kernel_distance(a, b) == pytest.approx(own[0] / 12 + own[1] / 6 - 2 * between / 12)


def test_a_set_is_as_good_as_itself():
    found = d.precision_recall_density_coverage(draw(100, 4), draw(100, 4))
    assert found == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})


def test_far_sets_share_nothing():
    found = d.precision_recall_density_coverage(draw(50, 4), draw(60, 4, seed=1) + 100)
    assert set(found.values()) == {0}


def test_a_collapsed_set_is_precise_and_covers_little():
    line = torch.arange(20.0)[:, None]  # with two neighbours each, inner balls reach 1 to both sides, outer ones 2
    found = d.precision_recall_density_coverage(line, torch.full((20, 1), 10.0), nearest=2)
    assert found == pytest.approx({"precision": 1, "recall": 1 / 20, "density": 3 / 2, "coverage": 3 / 20})


def test_outliers_are_not_precise_and_missing_modes_lower_recall():
    real = torch.cat([draw(100, 2, seed=1), draw(100, 2, seed=2) + 1000])  # two modes, and one has no counterpart
    other = torch.cat([draw(150, 2, seed=3), draw(50, 2, seed=4) - 1000])  # a quarter is nowhere near a real one
    found = d.precision_recall_density_coverage(real, other)
    assert found["precision"] == pytest.approx(0.75, abs=0.06)
    assert found["recall"] == pytest.approx(0.5, abs=0.05)
    assert found["coverage"] == pytest.approx(0.5, abs=0.05)


def test_variety_is_the_mean_distance_within_users_over_users():
    features = torch.tensor([[0.0, 0], [3, 4], [100, 0], [100, 1], [100, 2], [7, 7]])
    users = torch.tensor([4, 4, 9, 9, 9, 2])  # 5; (1 + 1 + 2) / 3; nothing
    assert d.variety(features, users) == pytest.approx((5 + 4 / 3) / 2)
    assert math.isnan(d.variety(features[:1], users[:1]))


def recorded(seed: int, users: int = 8, recordings: int = 10, images: int = 5, of_recording: float = 1.0) -> Seen:
    """Features of images that are alike within a recording and within a user, of the same users for every seed."""
    per_user = 3 * draw(users, 6, seed=99).repeat_interleave(recordings, 0)
    per_recording = per_user + of_recording * draw(users * recordings, 6, seed=seed)
    features = per_recording.repeat_interleave(images, 0) + draw(users * recordings * images, 6, seed=1000 + seed)
    numbers = torch.arange(users * recordings).repeat_interleave(images)
    return Seen(features, numbers // recordings, numbers)


@pytest.mark.parametrize("distance", [d.frechet_distance, d.kernel_distance])
def test_new_recordings_of_the_same_users_are_the_same(distance):
    found = [d.beside_floor(distance, recorded(2 * seed), recorded(2 * seed + 1), seed) for seed in range(20)]
    assert sum(beside.same for beside in found) >= 18
    assert all(beside.floor <= beside.floor_high for beside in found)


@pytest.mark.parametrize("distance", [d.frechet_distance, d.kernel_distance])
@pytest.mark.parametrize("change", ["shifted", "blurred", "swapped"])
def test_other_images_are_not_the_same(distance, change):
    real, new = recorded(1), recorded(2)
    features = {
        "shifted": new.features + 0.8,
        "blurred": 0.6 * new.features,  # less variety
        "swapped": new.features.flip(1),
    }[change]
    found = d.beside_floor(distance, real, Seen(features, new.users, new.recordings), seed=0)
    assert not found.same
    assert found.value > found.floor_high > 0


def test_halves_share_no_recording_and_have_as_many_images_of_each_user():
    real, other = recorded(1, recordings=6), recorded(2, recordings=30)
    row = {tuple(features): place for place, features in enumerate(real.features.tolist())}
    for half, rest, others in d.halvings(real, other, seed=3):
        a, b = (torch.tensor([row[tuple(features)] for features in side.tolist()]) for side in (half, rest))
        assert not set(real.recordings[a].tolist()) & set(real.recordings[b].tolist())
        assert len(a) == len(b) == len(others) == 8 * 3 * 5
        assert real.users[a].bincount().tolist() == real.users[b].bincount().tolist() == [15] * 8


def test_halvings_follow_from_the_seed_and_are_of_at_most_1000_images():
    real, other = recorded(1, recordings=60), recorded(2, recordings=60)
    firsts = [next(iter(d.halvings(real, other, seed))) for seed in (3, 3, 4)]
    assert all(len(side) == 1000 for side in firsts[0])
    assert all(torch.equal(x, y) for x, y in zip(firsts[0], firsts[1], strict=True))
    assert not torch.equal(firsts[0][0], firsts[2][0])


def test_coverage_of_new_recordings_is_that_of_halves():
    value, floor = d.coverage_beside_floor(recorded(1), recorded(2), seed=0)
    assert value == pytest.approx(floor, abs=0.12)
    collapsed = recorded(2)
    collapsed = Seen(collapsed.features[:1].expand(400, -1), collapsed.users, collapsed.recordings)
    value, floor = d.coverage_beside_floor(recorded(1), collapsed, seed=0)
    assert value["coverage"] < 0.1 < 0.7 < floor["coverage"]
