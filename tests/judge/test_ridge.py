"""Laws of the judge in closed form, against its definition and least squares."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.judge import ridge as module
from train.judge.labelled import Labelled
from train.judge.ridge import Ridge, ridge_of, seen_by_ridge


def fit_ridge(features: Tensor, users: Tensor, num_users: int) -> Ridge:
    """In units of the features themselves."""
    return module.fit_ridge(features, users, num_users, features)


def drawn(n: int, d: int, users: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    who = torch.arange(n) % users
    return torch.randn(n, d, generator=rng) + torch.randn(users, d, generator=rng)[who], who


def standardised(features: Tensor) -> Tensor:
    return ((features - features.mean(0)) / features.std(0, correction=0)).double()


@pytest.mark.parametrize("d", [10, 40, 90])
def test_the_weights_are_where_the_gradient_is_zero(d):
    """X^T (X W - Y) + r W = 0, r a tenth of an image's mean squared length. For 40 images: both ways to solve it."""
    features, users = drawn(40, d)
    fitted, x = fit_ridge(features, users, 4), standardised(features)
    y = F.one_hot(users, 4).double()
    y = y - y.mean(0)
    strength = 0.1 * float(x.square().sum(1).mean())
    gradient = x.T @ (x @ fitted.weights - y) + strength * fitted.weights
    assert gradient.abs().max() < 1e-5 * (x.T @ y).abs().max()


def test_with_a_tiny_ridge_it_is_least_squares(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 1e-9)
    for n, d in ((60, 12), (12, 60)):
        features, users = drawn(n, d)
        features = features.double()
        y = F.one_hot(users, 4).double()
        least, *_ = np.linalg.lstsq(standardised(features).numpy(), (y - y.mean(0)).numpy(), rcond=1e-10)
        np.testing.assert_allclose(fit_ridge(features, users, 4).weights, least, rtol=0, atol=1e-6)


def test_users_without_images_are_never_said():
    features, users = drawn(30, 8, users=3)
    new = 100 * torch.randn(500, 8, generator=torch.Generator().manual_seed(5))
    said = fit_ridge(features, 2 * users, 7).predict(new)  # users 0, 2 and 4 of seven
    assert set(said.tolist()) == {0, 2, 4}


def test_constant_features_say_nothing():
    features, users = drawn(30, 8)
    more = torch.cat([features, torch.full((30, 3), 7.0)], 1)
    new = torch.randn(50, 8, generator=torch.Generator().manual_seed(5))
    plain, fitted = fit_ridge(features, users, 4), fit_ridge(more, users, 4)
    changed = torch.cat([new, 1e6 * torch.randn(50, 3)], 1)
    assert torch.equal(fitted.predict(changed), plain.predict(new))


@pytest.mark.parametrize("kept", [[0], [0, 4], [0, 1], [2, 2, 2]])
def test_one_user_or_equal_images_are_no_error(kept):
    features, users = drawn(8, 5)
    said = fit_ridge(features[kept], users[kept], 4).predict(features)
    assert set(said.tolist()) <= set(users[kept].tolist())


def test_neither_unit_nor_offset_of_a_feature_matters():
    (features, users), (new, _) = drawn(50, 20), drawn(200, 20, seed=3)
    scale = 10 ** torch.linspace(-3, 3, 20)
    plain, scaled = fit_ridge(features, users, 4), fit_ridge(features * scale + scale, users, 4)
    assert (plain.predict(new) == scaled.predict(new * scale + scale)).float().mean() > 0.99


def test_users_that_differ_in_a_rhythm_are_told_apart():
    """Whenever the picture begins: the phase is drawn anew for each image."""
    rng = torch.Generator().manual_seed(0)
    users = torch.arange(60) % 3
    phase, x = torch.rand(60, 1, 1, 1, generator=rng), torch.arange(32) / 32
    wave = 128 + 60 * torch.cos(2 * torch.pi * ((3 + users[:, None, None, None]) * x + phase))
    noise = 20 * torch.randn(60, 1, 16, 32, generator=rng)
    images = (wave + noise).clamp(0, 255).to(torch.uint8)
    fitted = ridge_of(Labelled(images[:30], users[:30]), 3, Labelled(images[:30], users[:30]))
    assert torch.equal(fitted.predict(seen_by_ridge(images[30:])), users[30:])


@pytest.mark.parametrize("n", [30, 200])
def test_units_are_those_of_the_real_images(n):
    """Whatever an arm adds to them: the fit is that of features which are in these units already."""
    (real, _), (features, users) = drawn(25, 60), drawn(n, 60, seed=3)
    features = 5 * features + 1
    fitted = module.fit_ridge(features, users, 4, real)
    x = ((features - real.mean(0)) / real.std(0, correction=0)).double()
    y, centred = F.one_hot(users, 4).double(), x - x.mean(0)
    strength = 0.1 * float(centred.square().sum(1).mean())
    inverse = torch.linalg.inv(centred.T @ centred + strength * torch.eye(60, dtype=torch.float64))
    expected = (centred @ inverse @ centred.T @ (y - y.mean(0)) + y.mean(0)).argmax(1)
    assert torch.equal(fitted.predict(features), expected)
