"""How far are two sets of images apart? Distances on features, each beside what two halves of the real images reach.

Shapes: N or M images, D features, any floating-point type; everything is computed in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from train.base.randomness import generator

HALVINGS = 10
MOST = 1000  # images in a half, and as many others


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Of the Gaussians fitted to features (N, D) and (M, D): |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2).

    Heusel et al. 2017, eq. 6, with A, B the sample covariances, N and M at least 2. With X, Y the centred features,
    tr (A B)^1/2 is the sum of the singular values of X Y^T / sqrt((N-1) (M-1)): no root of a matrix is taken, and it
    holds for fewer images than features, too.
    """
    a, b = a.double(), b.double()
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    root = torch.linalg.svdvals(_factor(x) @ _factor(y).T).sum()
    squared = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, float(squared))


def _factor(x: Tensor) -> Tensor:
    """R with R^T R = x^T x and no more rows than columns, from x (N, D)."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased squared MMD of features (N, D) and (M, D) with the kernel (x.y / D + 1)^3; it may be negative.

    Binkowski et al. 2018, eq. 4 and section 4: KID, there of Inception's features. N and M are at least 2.
    """
    a, b = a.double(), b.double()
    return float(_mean_of_pairs(_kernel(a, a)) + _mean_of_pairs(_kernel(b, b)) - 2 * _kernel(a, b).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_of_pairs(matrix: Tensor) -> Tensor:
    """Mean of what is off the diagonal of a square matrix."""
    return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))


def precision_recall_density_coverage(real: Tensor, other: Tensor, nearest: int = 5) -> dict[str, float]:
    """Four shares of features `real` (N, D) and `other` (M, D); N and M at least 2, best equal.

    A ball around each image reaches to its `nearest`-th neighbour of its own set. Precision: of the others, those in
    a ball of a real one. Recall: of the real ones, those in a ball of another one (Kynkäänniemi et al. 2019, eq. 2).
    Density: mean number of real balls that another one is in, over `nearest`. Coverage: of the real balls, those
    that hold another one (Naeem et al. 2020, eqs. 3 and 4).
    """
    centre = real.double().mean(0)
    real, other = real.double() - centre, other.double() - centre
    between = _distances(real, other)  # N M
    in_real = between <= _reach(real, nearest)[:, None]  # N M
    in_other = between <= _reach(other, nearest)  # N M
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_other.any(1).double().mean()),
        "density": float(in_real.double().sum(0).mean() / min(nearest, len(real) - 1)),
        "coverage": float(in_real.any(1).double().mean()),
    }


def _reach(features: Tensor, nearest: int) -> Tensor:
    """Distance (N,) from each image to its `nearest`-th neighbour."""
    return _distances(features, features).kthvalue(min(nearest, len(features) - 1) + 1).values  # itself is the first


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M); what is 0 but for rounding is 0."""
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    squared = norms_a[:, None] + norms_b - 2 * a @ b.T
    return squared.where(squared > 1e-12 * torch.maximum(norms_a.max(), norms_b.max()), 0).sqrt()


def variety(features: Tensor, users: Tensor) -> float:
    """Mean distance between two images of a user, features (N, D), averaged over users (N,) who have two; or NaN."""
    sets = [features[users == user].double() for user in users.unique()]
    own = [_mean_of_pairs(_distances(x - x.mean(0), x - x.mean(0))) for x in sets if len(x) > 1]
    return float(torch.stack(own).mean()) if own else float("nan")


@dataclass(frozen=True, eq=False)
class Seen:
    """A set of images as features, with what a fair half of it depends on."""

    features: Tensor  # (N, D)
    users: Tensor  # int64, (N,)
    recordings: Tensor  # int64, (N,): numbers that no two users share; each image its own where there are none


@dataclass(frozen=True)
class Beside:
    """A distance beside the same distance between two halves of the real images; means over ten random halvings."""

    value: float
    floor: float
    floor_high: float  # the highest of the ten
    same: bool  # the value is not above that


def beside_floor(distance: Callable[[Tensor, Tensor], float], real: Seen, other: Seen, seed: int) -> Beside:
    """The distance from real to other images beside its floor, both between equally many images."""
    values, floors = [], []
    for half, rest, others in halvings(real, other, seed):
        values.append(distance(half, others))
        floors.append(distance(half, rest))
    value, high = sum(values) / len(values), max(floors)
    return Beside(value=value, floor=sum(floors) / len(floors), floor_high=high, same=value <= high)


def coverage_beside_floor(real: Seen, other: Seen, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Precision, recall, density and coverage of other images, and of one half of the real ones for the other half."""
    values, floors = [], []
    for half, rest, others in halvings(real, other, seed):
        values.append(precision_recall_density_coverage(half, others))
        floors.append(precision_recall_density_coverage(half, rest))
    means = [{key: sum(one[key] for one in rows) / len(rows) for key in rows[0]} for rows in (values, floors)]
    return means[0], means[1]


def halvings(real: Seen, other: Seen, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ten times the features of a random half of the real images, of the rest, and of other images, equally many.

    Recordings stay whole: one on both sides would make the halves more alike than new recordings are. Each half has
    half of each user's recordings, and each of the three sets as many images of every user as it can.
    """
    for number in range(HALVINGS):
        rng = generator(seed, "halves", number)
        first = _half(real, rng)
        sides = [(real, first.nonzero().flatten()), (real, (~first).nonzero().flatten())]
        sides.append((other, torch.arange(len(other.users))))
        count = min(MOST, *(len(rows) for _, rows in sides))
        yield tuple(seen.features[_balanced(rows, seen.users[rows], count, rng)] for seen, rows in sides)


def _half(real: Seen, rng: torch.Generator) -> Tensor:
    """Whether each image is in the first half: (N,) bool. Of an odd number of recordings, chance has the last one."""
    first = []
    for user in real.users.unique():
        own = real.recordings[real.users == user].unique()
        share = (len(own) + int(torch.randint(2, (), generator=rng))) // 2
        first.append(own[torch.randperm(len(own), generator=rng)[:share]])
    return torch.isin(real.recordings, torch.cat(first))


def _balanced(rows: Tensor, users: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of the rows (N,), drawn at random, from each of the users (N,) in turn."""
    order = torch.randperm(len(rows), generator=rng)
    rows, users = rows[order], users[order]
    turn = torch.zeros(len(rows), dtype=torch.int64)
    for user in users.unique():
        turn[users == user] = torch.arange(int((users == user).sum()))
    return rows[turn.argsort(stable=True)[:count]]
