"""The judge in closed form: ridge regression from row spectra to users. It has no steps, no learning rate, no luck.

Shapes: N images, D features, U users.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from train.judge.labelled import Labelled
from train.judge.spectra import row_spectra

RIDGE = 0.1  # in units of the mean squared length of a standardised image; 0.001 to 0.1 make no difference that matters


@dataclass(frozen=True, eq=False)
class Ridge:
    mean: Tensor  # D
    deviation: Tensor  # D
    weights: Tensor  # (D, U)
    offset: Tensor  # U

    def predict(self, features: Tensor) -> Tensor:
        """The most likely users (N,) of features (N, D)."""
        return (((features - self.mean) / self.deviation).double() @ self.weights + self.offset).argmax(1)


def seen_by_ridge(images: Tensor) -> Tensor:
    """Features (N, D) of images, uint8 (N, C, H, W): the square roots of their row spectra.

    Strong modulations do not drown the weak ones then. With the spectra themselves, noise as generated images drowned
    them less, and was called a help in 3 of 12 trials; with their roots in none, and new recordings help as much.
    """
    return row_spectra(images).sqrt()


def fit_ridge(features: Tensor, users: Tensor, num_users: int, measure: Tensor) -> Ridge:
    """One-against-all regression: minimises |X W - Y|^2 + r |W|^2 over centred X (N, D) and Y (N, U).

    The features are in units of their deviations in `measure` (M, D), those of real images. With their own, images
    without any sense would make the judge better: noise raises the units of the weak features, which are noise.
    Users without images get no say.
    """
    mean, deviation = measure.mean(0), measure.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, torch.inf)  # constant features say nothing
    x = ((features - mean) / deviation).double()
    y = F.one_hot(users, num_users).double()
    centre, share = x.mean(0), y.mean(0)
    x, y = x - centre, y - share
    n, d = x.shape
    square = float(x.square().sum()) / n  # of an image's length
    strength = RIDGE * max(square, 1e-12)
    if n <= d:  # the same W, from the smaller system
        weights = x.T @ torch.linalg.solve(x @ x.T + strength * torch.eye(n, dtype=x.dtype), y)
    else:
        weights = torch.linalg.solve(x.T @ x + strength * torch.eye(d, dtype=x.dtype), x.T @ y)
    return Ridge(mean, deviation, weights, torch.where(share > 0, share - centre @ weights, -torch.inf))


def ridge_of(training: Labelled, num_users: int, real: Labelled) -> Ridge:
    """Of training images in units of real ones."""
    return fit_ridge(seen_by_ridge(training.images), training.users, num_users, seen_by_ridge(real.images))
