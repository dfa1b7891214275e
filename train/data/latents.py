"""Latents: their scale, and a cache, with which the VAE encodes each image only once.

Shapes: N images, B batch, Z h w latents. The moments of an image are the mean and the standard deviation of its
latents, (2, Z, h, w).
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.vae import AutoencoderKL
from train.base.errors import UserError, require
from train.base.files import replacing, tensors_hash
from train.base.processes import on_main
from train.base.progress import progress
from train.base.units import MiB
from train.data.dataset import UserImages, evenly

ENCODING_BATCH = 16
SHA256_BYTES = 32


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Yields the moments of the images `rows` in float32, (B, 2, Z, h, w) for each batch."""
    for batch in progress(rows.split(ENCODING_BATCH), desc="encoding latents", unit="batch", leave=False):
        posterior = vae.encode(data.batch(batch).to(device))
        yield torch.stack([posterior.mean, posterior.std], dim=1).cpu()


def measure_scaling(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> dict:
    """1 / standard deviation of the latents of the images `rows` (Rombach et al. 2022, appendix G).

    The variance of sampled latents is that of the encoder's means plus the mean of the variances that it predicts, so
    nothing has to be drawn. Sums are in float64, over all images: the first batch alone can be far off.
    """
    count, total, squares = 0, 0.0, 0.0
    for moments in encode_moments(vae, data, rows, device):
        means, stds = moments.double().unbind(1)
        count += means.numel()
        total += float(means.sum())
        squares += float((means.square() + stds.square()).sum())
    mean = total / count
    variance = squares / count - mean**2
    varies = variance > 1e-12 * max(1, mean**2)  # of a constant, only rounding is left, which may be negative
    require(varies, "the VAE turns all images into the same latents, and so has learned nothing; train another")
    std = variance**0.5
    return {"scaling_factor": 1 / std, "mean": mean, "std": std, "images": len(rows), "values": count}


def require_sane_latents(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> float:
    """The standard deviation of scaled latents, of a few of the images `rows`.

    UserError where it is far from 1, with the scale that would make it 1 over all of them.
    """
    few, factor = evenly(rows, 32), vae.config.scaling_factor
    std = measure_scaling(vae, data, few, device)["std"] * factor
    if not 0.5 < std < 2.0:
        right = measure_scaling(vae, data, rows, device)["scaling_factor"]
        raise UserError(
            f"scaled latents of {len(few)} images have standard deviation {std:.3g}, not about 1: the VAE was trained "
            f"on other images, or its scaling_factor, {factor:.5g}, is not its own; train one on these images, or "
            f'write "scaling_factor": {right:.5g}, as measured over {len(rows)} of them, into its config.json'
        )
    return std


def cached_moments(
    vae: AutoencoderKL, data: UserImages, rows: Tensor, folder: Path, device: torch.device
) -> Tensor:
    """Moments of the images `rows` (R,), float32 (R, 2, Z, h, w), mapped from a file that is written the first time.

    The file's name is a hash of all that they depend on: the VAE, except the scale of its latents, and the pixels. It
    ends with a checksum of that and of its content; one that does not fit is written again, and that is said.
    """
    config, images = replace(vae.config, scaling_factor=None, sample_size=None), data.images[rows]
    key = tensors_hash([images, *vae.state_dict().values()], repr((config, images.shape)))
    path = folder / f"{key[:32]}.npy"

    def write() -> None:
        if path.is_file():
            if _is_whole(path, key):
                return
            print(f"{path}: is damaged; the images are encoded again", file=sys.stderr)
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), 2, *latent_shape(vae, data))}
        # Written, not mapped: a page of a mapped file for which the disk has no room kills the process.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for moments in encode_moments(vae, data, rows, device):
                file.write(moments.contiguous().numpy())
            file.flush()
            file.write(_checksum(temporary, key, file.tell()))  # numpy reads no further than the array

    on_main(write)
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # "c": writable, as torch wants it, but not in the file


def _is_whole(path: Path, key: str) -> bool:
    """Whether a file of moments can be read, and ends with the checksum of what it holds."""
    try:
        content = path.stat().st_size - SHA256_BYTES
        with open(path, "rb") as file:
            file.seek(max(content, 0))
            return file.read() == _checksum(path, key, content)
    except OSError:
        return False


def _checksum(path: Path, key: str, count: int) -> bytes:
    """SHA-256 of the key and the first `count` bytes of a file."""
    digest = hashlib.sha256(key.encode())
    with open(path, "rb") as file:
        while count > 0 and (piece := file.read(min(count, MiB))):
            digest.update(piece)
            count -= len(piece)
    return digest.digest()


def latent_shape(vae: AutoencoderKL, data: UserImages) -> tuple[int, int, int]:
    """(Z, h, w) of one image's latents."""
    side = data.images.shape[-1] // vae.config.downscale
    return vae.config.latent_channels, side, side


class LatentSource:
    """Scaled latents of the images, from cached moments or from the VAE, with the same result.

    Cached are the moments (R, 2, Z, h, w) of the images `rows` (R,); None: of the first R. Others raise IndexError.
    """

    def __init__(
        self, vae: AutoencoderKL, data: UserImages, moments: Tensor | None, device: torch.device,
        float32: Callable[[], AbstractContextManager] | None = None, rows: Tensor | None = None,
    ):  # fmt: skip
        self.vae, self.data, self.moments, self.device = vae, data, moments, device
        self.shape = latent_shape(vae, data)
        self.float32 = float32 or partial(torch.autocast, device.type, enabled=False)
        """A context that turns autocast off, in which images are encoded."""
        self.place = None  # of an image in `moments`
        if rows is not None:
            self.place = torch.full((int(rows.max()) + 1,), len(rows))  # a place that is not there
            self.place[rows] = torch.arange(len(rows))

    @torch.no_grad()
    def latents(self, rows: Tensor, flips: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, Z, h, w) of images `rows` (B,) flipped by `flips` (2, B), sampled with standard normal `noise`.

        With cached moments nothing is flipped: the config refuses flips together with the cache.
        """
        if self.moments is None:
            images = self.data.batch(rows, *flips).to(self.device)
            with self.float32():
                posterior = self.vae.encode(images)
            mean, std = posterior.mean, posterior.std
        else:
            at = rows if self.place is None else self.place[rows]
            mean, std = self.moments[at].to(self.device).unbind(1)
        return (mean + std * noise) * self.vae.config.scaling_factor
