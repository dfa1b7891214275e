"""Laws of row spectra."""

import pytest
import torch
from torch import Tensor

from train.judge.spectra import row_spectra


def noise(count: int, side: int, width: int | None = None, channels: int = 3) -> Tensor:
    shape = (count, channels, side, width or side)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_a_circular_shift_along_x_changes_nothing():
    images = noise(6, 64)
    for shift in (1, 17, 63):
        torch.testing.assert_close(row_spectra(images.roll(shift, 3)), row_spectra(images), rtol=0, atol=1e-6)
    assert (row_spectra(images.roll(1, 2)) - row_spectra(images)).abs().max() > 0.01


@pytest.mark.parametrize("rate", [1, 7, 32])
def test_a_modulation_lands_in_the_column_of_its_rate(rate):
    """cos has magnitude 1/2 at its own rate and at minus that; at W/2 both are one."""
    side, row = 64, 40
    wave = 100 * torch.cos(2 * torch.pi * rate * torch.arange(side) / side)
    image = torch.zeros(1, 1, side, side)
    image[0, 0, row] = 128 + wave
    spectrum = row_spectra(image.round().to(torch.uint8)).reshape(side, 33)
    assert spectrum[row, 0] == pytest.approx(128 / 255, abs=2e-3)
    assert spectrum[row, rate] == pytest.approx(100 / 255 / (1 if rate == side // 2 else 2), abs=2e-3)
    spectrum[row, [0, rate]] = 0
    assert spectrum.max() < 2e-3


def test_a_constant_image_has_only_its_mean():
    spectrum = row_spectra(torch.full((2, 3, 32, 32), 51, dtype=torch.uint8)).reshape(2, 32, 17)
    torch.testing.assert_close(spectrum[:, :, 0], torch.full((2, 32), 0.2))
    assert spectrum[:, :, 1:].max() < 1e-6


@pytest.mark.parametrize(
    ("height", "width", "numbers"),
    [(128, 128, 64 * 33), (64, 64, 64 * 33), (16, 16, 16 * 9), (100, 100, 64 * 33), (8, 30, 8 * 16)],
)
def test_small_images_have_as_many_numbers_as_they_can(height, width, numbers):
    spectra = row_spectra(noise(3, height, width))
    assert spectra.shape == (3, numbers)
    assert spectra.isfinite().all()
    assert row_spectra(noise(3, height, width), 4, 2).shape == (3, 8)


def test_spectra_do_not_depend_on_the_other_images():
    images = noise(1030, 8, channels=1)
    whole = row_spectra(images)
    assert torch.equal(whole[1029:], row_spectra(images[1029:]))
