"""Laws of what pictures keep of their originals."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from train.stages import fidelity


def noise(*shape: int, seed: int = 0, mean: float = 128.0, std: float = 30.0) -> torch.Tensor:
    return mean + std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three uint8 images with structure and three versions of them: a bit noisy, darker, and another image."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    waves = [128 + 100 * torch.sin(x / (2 + k) + y / (5 - k)) for k in range(3)]
    a = torch.stack(waves).expand(3, 3, *size)
    b = torch.stack([a[0] + noise(3, *size, mean=0, std=12), 0.7 * a[1], noise(3, *size)])
    return a.clamp(0, 255).to(torch.uint8), b.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", [(64, 64), (11, 11), (33, 20)])
def test_psnr_and_ssim_equal_scikit_image(size):
    a, b = pairs(size)
    both = list(zip(a.numpy(), b.numpy(), strict=True))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # those of the paper
    theirs = [structural_similarity(x, y, channel_axis=0, data_range=255, **settings) for x, y in both]
    np.testing.assert_allclose(fidelity.ssim(a, b), theirs, rtol=0, atol=1e-9)
    theirs = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in both]
    np.testing.assert_allclose(fidelity.psnr(a, b), theirs, rtol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (10, 64), (3, 3)])
def test_ssim_of_small_images_is_1_of_equal_ones_only(size):
    a, b = pairs(size)
    torch.testing.assert_close(fidelity.ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert (fidelity.ssim(a, b) < 1).all()


def test_equal_images_have_an_infinite_psnr():
    a, _ = pairs((16, 16))
    assert fidelity.psnr(a, a).isposinf().all()


def test_white_noise_has_its_variance_in_every_band():
    power = fidelity.power_by_frequency(noise(100, 3, 64, 64, std=20))
    torch.testing.assert_close(power, torch.full((3,), 400.0, dtype=torch.float64), rtol=0.03, atol=0)
    ratios = fidelity.power_ratios(noise(100, 1, 32, 32, seed=1), noise(100, 1, 32, 32, seed=2))
    assert ratios == pytest.approx([1, 1, 1], rel=0.1)


@pytest.mark.parametrize(("cycles", "band"), [((3, 4), 0), ((0, 12), 1), ((9, 9), 1), ((20, 0), 2), ((32, 32), 2)])
def test_a_sinusoid_has_its_power_in_its_band(cycles, band):
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (cycles[0] * y + cycles[1] * x) / 64)[None, None].double()
    power = fidelity.power_by_frequency(128 + 10 * wave)
    assert power[band] > 1000 * power[[other for other in range(3) if other != band]].max()
    torch.testing.assert_close(fidelity.power_by_frequency(50 + 30 * wave), 9 * power)


def test_a_blur_keeps_the_square_of_its_transfer_function():
    image, sigma = noise(200, 1, 64, 64), 0.6
    y, x = torch.fft.fftfreq(64).double()[:, None], torch.fft.fftfreq(64).double()[None]
    transfer = torch.exp(-2 * (torch.pi * sigma) ** 2 * (x**2 + y**2))
    blurred = torch.fft.ifft2(torch.fft.fft2(image) * transfer).real
    radius = torch.hypot(y, x)
    bands = [(low <= radius) & (radius < (1 if high == 0.5 else high)) for low, high in fidelity.BANDS]
    expected = [float(transfer[band].square().mean()) for band in bands]
    assert fidelity.power_ratios(blurred, image) == pytest.approx(expected, rel=0.02)


def test_a_jump_between_opposite_borders_is_no_high_frequency():
    ramp = torch.linspace(0, 255, 64).expand(1, 1, 64, 64)
    power = fidelity.power_by_frequency(ramp)
    assert power[2] < 1e-5 * power[0]


def test_images_without_content_have_the_same_power():
    black, white = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    assert fidelity.power_ratios(black, white) == pytest.approx([1, 1, 1])


def test_errors_at_corners_and_borders_are_over_those_inside():
    a = noise(5, 3, 8, 9)
    b = a + 2
    assert fidelity.border_errors(a, b) == pytest.approx({"border": 1, "corner": 1})
    b[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = a[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] - 10
    b[:, :, 1:-1, 0] = b[:, :, 1:-1, -1] = 0
    b[:, :, 0, 1:-1] = b[:, :, -1, 1:-1] = 0
    a[:, :, 1:-1, 0] = a[:, :, 1:-1, -1] = 6
    a[:, :, 0, 1:-1] = a[:, :, -1, 1:-1] = 6
    assert fidelity.border_errors(a, b) == pytest.approx({"border": 3, "corner": 5})
    assert fidelity.border_errors(a, a) == {"border": 1, "corner": 1}


def test_borders_that_are_off_show_without_originals():
    real, generated = noise(4000, 1, 8, 8, seed=1), noise(4000, 1, 8, 8, seed=2)
    same = fidelity.border_statistics(generated, real)
    assert max(same.values()) < 2
    generated[:, :, :, 0] += 30  # the mean of a border and of its two corners
    off = fidelity.border_statistics(generated, real)
    inside = fidelity.border_statistics(real + 30, real)
    assert min(off.values()) > 10
    assert inside == pytest.approx({"border": 1, "corner": 1})
    generated = noise(4000, 1, 8, 8, seed=2)
    generated[:, :, 0, 0] = 128 + 2 * (generated[:, :, 0, 0] - 128)  # the deviation of one corner
    assert fidelity.border_statistics(generated, real)["corner"] > 10


def test_latents_are_inactive_where_their_mean_does_not_vary():
    mean, std = noise(5000, 4, 2, 3, mean=0, std=1), torch.ones(5000, 4, 2, 3)
    mean[:, 0] *= math.sqrt(0.02)  # 2% of the variance
    mean[:, 1] *= math.sqrt(0.005)  # half a percent
    mean[:, 2, 0, 0] = 7.0  # nothing, of one component
    assert fidelity.inactive_latents(mean, std) == pytest.approx(7 / 24)
    assert fidelity.inactive_latents(1e-3 * mean, 1e-3 * std) == pytest.approx(7 / 24)
    assert fidelity.inactive_latents(mean, 0 * std) == pytest.approx(1 / 24)
