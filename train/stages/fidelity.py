"""What pictures keep of their originals: PSNR, SSIM, power by spatial frequency, borders, latents that carry nothing.

Images are pixels from 0 to 255, uint8 or floating point, (N, C, H, W); everything is computed in float64. PSNR alone
hides lost texture: it looks at the strongest frequencies, and people may differ in the weak ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WHITE = 255.0
MOST_PSNR = 150.0  # dB
BATCH = 64  # images whose float64 maps are in memory at once
SIGMA, WINDOW = 1.5, 11  # pixels, of SSIM's Gaussian window
BANDS = ((0.0, 0.125), (0.125, 0.25), (0.25, 0.5))  # cycles per pixel
NEGLIGIBLE = 1e-6  # levels^2, far below what rounding to whole levels makes (1/12): 0 / 0 is 1 in every ratio
ACTIVE = 0.01  # least share of its variance that an active latent owes to the image


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (dB) of each image, (N,); infinite where both are equal."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)  # N
    return 10 * torch.log10(WHITE**2 / error)


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """The mean over images, where one without any error counts as 150 dB: JSON holds no infinity."""
    return float(psnr(a, b).clamp(max=MOST_PSNR).mean())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), at most 1, mean over channels: Wang et al. 2004, eq. 13.

    Windows that would reach over the border are left out. In images of less than 11 pixels a window has the largest
    odd number of pixels that fits.
    """
    return torch.cat([_ssim(x.double(), y.double()) for x, y in zip(a.split(BATCH), b.split(BATCH), strict=True)])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    c1, c2 = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2
    channels = x.shape[1]
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # N 5C H W
    mean_x, mean_y, xx, yy, xy = _gaussian_means(maps).split(channels, dim=1)  # N C h w each
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    alike = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (alike * (2 * cov + c2) / (var_x + var_y + c2)).flatten(1).mean(1)


def _gaussian_means(maps: Tensor) -> Tensor:
    """Means (N, C, h, w) of maps (N, C, H, W) under the Gaussian window, wherever it lies within them."""
    (height, width), channels = maps.shape[2:], maps.shape[1]
    column, row = (_gaussian(min(WINDOW, side - 1 + side % 2)).to(maps.device) for side in (height, width))
    maps = F.conv2d(maps, column.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(maps, row.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)


def _gaussian(size: int) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def power_by_frequency(images: Tensor) -> Tensor:
    """Mean power (levels^2) of the images' Fourier transform in each of BANDS; of white noise, its variance in all.

    A band is of radial frequency, low <= f < high; the last one also holds the spectrum's corners, up to 0.71, where
    a decoder's checkerboards are. A Hann window, and no mean: the transform takes an image for periodic, and without
    the window the jump from its right to its left border would be most of the power at high frequencies.
    """
    height, width = images.shape[2:]
    window = _hann(height)[:, None] * _hann(width)  # H W
    window = (window / window.square().mean().sqrt()).to(images.device)
    power = torch.zeros(height, width, dtype=torch.float64, device=images.device)
    for batch in images.split(BATCH):
        x = batch.double()
        x = x - (x * window).sum((2, 3), keepdim=True) / window.sum()
        power += torch.fft.fft2(x * window, norm="ortho").abs().square().sum((0, 1)) / images.shape[:2].numel()
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]).to(images.device)
    edges = torch.tensor([low for low, _ in BANDS[1:]], device=images.device)
    band = torch.bucketize(radius, edges, right=True)  # H W
    inside = [band == number for number in range(len(BANDS))]
    return torch.stack([power[here].sum() / here.sum().clamp(min=1) for here in inside])


def _hann(size: int) -> Tensor:
    return torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2


def power_ratios(images: Tensor, real: Tensor) -> list[float]:
    """Power by frequency of `images` over that of `real`: 1 is right, less is blur, more is noise."""
    return ((power_by_frequency(images) + NEGLIGIBLE) / (power_by_frequency(real) + NEGLIGIBLE)).tolist()


def border_errors(a: Tensor, b: Tensor) -> dict[str, float]:
    """RMS error of the "corner" pixels, and of the rest of the "border" of one pixel, over that of the inside."""
    return _over_inside((a.double() - b.double()).square().mean((0, 1)))


def border_statistics(images: Tensor, real: Tensor) -> dict[str, float]:
    """The same for images that have no originals: how far each pixel's mean and deviation over the set are off.

    Few images leave noise in both parts of the ratio, which draws it to that of the pixels' deviations.
    """
    x, y = images.double(), real.double()
    off = (x.mean(0) - y.mean(0)).square() + (x.std(0, correction=0) - y.std(0, correction=0)).square()
    return _over_inside(off.mean(0))


def _over_inside(squared: Tensor) -> dict[str, float]:
    """Roots of the means of squared errors (H, W), at least 3 x 3, by part of the image."""
    top, left = torch.zeros(squared.shape[0], 1, dtype=bool), torch.zeros(1, squared.shape[1], dtype=bool)
    top[[0, -1]], left[:, [0, -1]] = True, True
    corner, border = (top & left).to(squared.device), (top ^ left).to(squared.device)
    inside = squared[~(corner | border)].mean() + NEGLIGIBLE
    parts = {"border": border, "corner": corner}
    return {name: float(((squared[part].mean() + NEGLIGIBLE) / inside).sqrt()) for name, part in parts.items()}


def inactive_latents(mean: Tensor, std: Tensor) -> float:
    """Share of the Z*h*w components of the latents that tell nothing of the image; both (N, Z, h, w), N at least 2.

    A component is active if the posterior's mean varies from image to image: Burda et al. 2015, appendix C, whose
    threshold is 0.01 where the prior's variance is 1. With a small KL weight latents have any scale, so here it is
    0.01 of the component's variance, that of the mean and that within the posterior together.
    """
    between, within = mean.double().var(0), std.double().square().mean(0)  # Z h w
    return float((between <= ACTIVE * (between + within)).double().mean())
