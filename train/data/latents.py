"""Latents: their scale, and the cache that lets the VAE look at each image once.

Shapes: N images, B batch, I image channels, H W image, Z h w latents.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.vae import AutoencoderKL
from train.base import processes as parallel
from train.base.files import replacing, tensors_hash, write_json
from train.base.progress import progress
from train.data.dataset import UserImages

ENCODING_BATCH = 16


@dataclass(frozen=True)
class LatentsConfig:
    vae_path: str | None = None
    """Folder of a trained VAE; None: `final_model` in vae_training.output_dir."""
    cache_latents: bool = True
    """Encode every image once, before training; otherwise in each step."""

    def __post_init__(self) -> None:
        if self.vae_path == "":
            raise ValueError("vae_path is empty; give the folder of a VAE, or null")


@torch.no_grad()
def encode_moments(
    vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device
) -> Iterator[Tensor]:
    """Mean and standard deviation of images' latents, in float32: (B, 2, Z, h, w) for a batch at a time."""
    batches = rows.split(ENCODING_BATCH)
    for batch in progress(batches, desc="encoding latents", unit="batch", leave=False):
        posterior = vae.encode(data.batch(batch).to(device))
        yield torch.stack([posterior.mean, posterior.std], dim=1).cpu()


def measure_scaling(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> dict:
    """1 / standard deviation of the latents of these images (Rombach et al. 2022, appendix G).

    Of latents as they are sampled: the variance that the encoder itself adds is counted without sampling it.
    Sums are float64, over all of the images: a first batch alone can be far off.
    """
    count, total, squares = 0, 0.0, 0.0
    for moments in encode_moments(vae, data, rows, device):
        mean, std = moments.double().unbind(1)
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + std.square()).sum())
    std = (squares / count - (total / count) ** 2) ** 0.5
    mean = total / count
    return {"scaling_factor": 1 / std, "mean": mean, "std": std, "images": len(rows), "values": count}


def save_statistics(statistics: dict, directory: Path) -> None:
    write_json(directory / "latent_statistics.json", statistics)


def cached_moments(vae: AutoencoderKL, data: UserImages, folder: Path, device: torch.device) -> Tensor:
    """Moments of all images, float32 (N, 2, Z, h, w), mapped from a file that is written the first time.

    The file's name is a hash of the VAE and of the images, so that it is never a stale one.
    """
    path = folder / f"{_key(vae, data)}.npy"

    def write() -> None:
        if path.is_file():
            return
        shape = (len(data), 2, *latent_shape(vae, data))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        # Written, not mapped: a page of a mapped file that the disk has no room for kills the process.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for moments in encode_moments(vae, data, torch.arange(len(data)), device):
                file.write(moments.contiguous().numpy())

    parallel.on_main(write)
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # "c": never written back, but torch may map it


def latent_shape(vae: AutoencoderKL, data: UserImages) -> tuple[int, int, int]:
    """(Z, h, w) of one image."""
    side = data.images.shape[-1] // vae.config.downscale
    return vae.config.latent_channels, side, side


class LatentSource:
    """Scaled latents of the images, from the cache or from the VAE, with the same result."""

    def __init__(
        self, vae: AutoencoderKL, data: UserImages, config: LatentsConfig, cache: Path, device: torch.device
    ):
        self.vae, self.data, self.device = vae, data, device
        self.moments = cached_moments(vae, data, cache, device) if config.cache_latents else None
        self.shape = latent_shape(vae, data)

    def latents(self, rows: Tensor, flips: Tensor, posterior: Tensor) -> Tensor:
        """Latents (B, Z, h, w) of images `rows` (B,) flipped by `flips` (2, B), sampled by `posterior` noise.

        The cache holds no flipped images: the config refuses flips with it.
        """
        kept = self.data.batch(rows, *flips) if self.moments is None else self.moments[rows]
        float32 = partial(torch.autocast, self.device.type, enabled=False)
        return scaled_latents(self.vae, kept.to(self.device), posterior, float32)


@torch.no_grad()
def scaled_latents(
    vae: AutoencoderKL, kept: Tensor, posterior: Tensor, float32: Callable[[], AbstractContextManager]
) -> Tensor:
    """Latents (B, Z, h, w), sampled by `posterior` noise, of images (B, I, H, W) or cached moments (B, 2, Z, h, w).

    Images are encoded within `float32()`, which switches autocast off.
    """
    if kept.dim() == 5:
        mean, std = kept.unbind(1)
    else:
        with float32():
            distribution = vae.encode(kept)
        mean, std = distribution.mean, distribution.std
    return (mean + std * posterior) * vae.config.scaling_factor


def _key(vae: AutoencoderKL, data: UserImages) -> str:
    """Of all that the moments depend on: the VAE, but for how its latents are scaled, and the pixels."""
    config = replace(vae.config, scaling_factor=None, sample_size=None)
    return tensors_hash([data.images, *vae.state_dict().values()], repr((config, data.images.shape)))[:32]
