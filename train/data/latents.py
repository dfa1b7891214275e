"""Latents: their scale, and a store of them (train/data/store.py), with which the VAE encodes each image only once.

Shapes: N images, B batch, Z h w latents. The moments of an image are the mean and the standard deviation of its
latents, (2, Z, h, w).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.vae import AutoencoderKL
from train.base.errors import UserError, out_of_memory, require
from train.base.files import tensors_hash
from train.base.interruption import waiting
from train.base.processes import in_each, on_main, rank, world_size
from train.base.progress import progress
from train.base.units import GiB
from train.data.dataset import UserImages, evenly
from train.data.store import Rows, Store

MOST_ENCODED = 64  # images at once


def encoding_batch(vae: AutoencoderKL, side: int) -> int:
    """How many images of this side are encoded at once: as many as take about a GiB, whatever machine it is.

    Where the image is still whole, the encoder has some six tensors of its first block's channels at a time.
    """
    return min(max(GiB // (6 * 4 * vae.config.channels[0] * side**2), 1), MOST_ENCODED)


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Yields the moments of the images `rows` in float32, (B, 2, Z, h, w) for each batch; smaller ones if need be."""
    size, at = encoding_batch(vae, data.images.shape[-1]), 0
    with progress(total=len(rows), desc="encoding latents", unit="image", leave=False) as bar:
        while at < len(rows):
            moments = _encode(vae, data, rows[at : at + size], device)
            if moments is None:
                size //= 2
                torch.cuda.empty_cache()
                continue
            yield moments
            at += len(moments)
            bar.update(len(moments))


def _encode(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> Tensor | None:
    """None where memory for more than one image runs out."""
    try:
        posterior = vae.encode(data.batch(rows).to(device))
        return torch.stack([posterior.mean, posterior.std], dim=1).cpu()
    except RuntimeError as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
        return None


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
) -> Rows:
    """Moments of the images `rows` (R,), float32 (R, 2, Z, h, w), from a store; what it lacks is encoded first.

    The store's name is a hash of the VAE, except the scale of its latents; in it a picture's pixels are the key, so
    that of other pictures only the new ones are encoded. Several processes divide the batches, which are those of one
    process; the first one writes, at once, so that encoding that is interrupted goes on.
    """
    config, shape = replace(vae.config, scaling_factor=None, sample_size=None), (2, *latent_shape(vae, data))
    name = tensors_hash(vae.state_dict().values(), repr((config, shape)))
    store, keys = Store(folder / name[:32], shape, np.float32), data.digests[rows.numpy()]
    with ExitStack() as held, waiting():

        def begin() -> tuple[np.ndarray, range]:
            held.enter_context(store.held())
            lacking = np.flatnonzero(store.find(keys) < 0)
            _, first = np.unique(keys[lacking].view(f"S{keys.itemsize}"), return_index=True)
            lacking = lacking[np.sort(first)]
            return lacking, store.places(len(lacking), "set latents.cache_latents to false, or give another output_dir")

        lacking, places = on_main(begin)
        shares = divided(len(lacking), encoding_batch(vae, data.images.shape[-1]))
        todo = [zip(lacking[share], np.array(places)[share], strict=True) for share in shares]
        encoded = encode_moments(vae, data, rows[lacking[shares[rank()]]], device)

        def keep(found: list[Tensor | None]) -> bool:
            """Whether there may be more."""
            for moments, own in zip(found, todo, strict=True):
                batch = zip(moments.numpy() if moments is not None else (), own, strict=False)
                store.add([(keys[row].tobytes(), at, store.write(at, one), ()) for one, (row, at) in batch])
            return any(moments is not None for moments in found)

        while on_main(partial(keep, in_each(lambda: next(encoded, None)))):
            pass
        on_main(held.close)  # before the others look
    if rank():
        store.look()
    return store.rows(store.find(keys), lambda i: next(encode_moments(vae, data, rows[i : i + 1], device))[0].numpy())


def divided(count: int, size: int) -> list[np.ndarray]:
    """Which of so many images each process encodes: of their batches of this size, one after another."""
    batches = np.arange(count) // size
    return [np.flatnonzero(batches % world_size() == process) for process in range(world_size())]


def latent_shape(vae: AutoencoderKL, data: UserImages) -> tuple[int, int, int]:
    """(Z, h, w) of one image's latents."""
    side = data.images.shape[-1] // vae.config.downscale
    return vae.config.latent_channels, side, side


class LatentSource:
    """Scaled latents of the images, from cached moments or from the VAE, with the same result.

    Cached are the moments (R, 2, Z, h, w) of the images `rows` (R,); None: of the first R. Others raise IndexError.
    """

    def __init__(
        self, vae: AutoencoderKL, data: UserImages, moments: Tensor | Rows | None, device: torch.device,
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
