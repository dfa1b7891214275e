"""Generate images of users: sample latents from noise, and decode them to pixels.

Shapes: N images, B of them at a time, Z h w latents, I image channels, H W image, L D context.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from diffusion.guidance import Denoiser, guided, mixed
from diffusion.sampling import AfterStep, SamplingConfig, sample
from diffusion.schedule import Schedule
from nets.denoiser import UserDenoiser
from nets.vae import AutoencoderKL
from train.base.folders import filling, is_complete
from train.base.processes import gather, on_main, rank, wait_for_all, world_size
from train.base.progress import progress, say
from train.base.randomness import generator
from train.base.sound import what_is_wrong
from train.base.units import counted
from train.config.sections import GenerationConfig
from train.data.contrast import are_flat
from train.data.images import save_picture, to_picture, to_uint8
from train.engine.step import NotFinite
from train.runs.final_model import TrainedLDM

Image = tuple[int, int]  # the user's index, and the number of the image among those of the user


def generate(
    model: UserDenoiser, vae: AutoencoderKL, schedule: Schedule, config: SamplingConfig,
    images: Sequence[Image], seed: int, batch_size: int,
) -> Tensor:  # fmt: skip
    """One image for each (user, number) of `images`: uint8 (N, I, H, W).

    An image's noise depends only on the seed, the user and the number, and so does the other user who gives it its
    large structures where `config.mix_above` is set. So the image is the same in any batch: on the CPU bit for bit in
    batches of one size, and to within one level of 255 in one of another size, whose sums are taken in another order.
    The models must be in evaluation mode and on one device. NotFinite where their weights are too large for that.
    """
    batches = batches_of(images, batch_size)
    pixels = [decode(vae, sample_latents(model, schedule, config, batch, seed)) for batch in batches]
    return torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8)


def batches_of(images: Sequence[Image], size: int) -> list[Sequence[Image]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


@torch.no_grad()
def sample_latents(
    model: UserDenoiser, schedule: Schedule, config: SamplingConfig, images: Sequence[Image], seed: int,
    noise: Tensor | None = None, after_step: AfterStep | None = None,
) -> Tensor:  # fmt: skip
    """The scaled latents of one batch of images, B Z h w; from this `noise` B Z h w in place of the seed's."""
    device, unet = next(model.parameters()).device, model.unet.config
    rngs = [generator(seed, "images", user, number) for user, number in images]

    def draw_noise() -> Tensor:
        shape = (unet.latent_channels, unet.sample_size, unet.sample_size)
        return torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device)  # B Z h w

    users = torch.tensor([user for user, _ in images], device=device)
    denoiser = guided_to(users, model, config)
    if config.mix_above is not None:
        num_users = model.user_encoder.config.num_users
        others = [another(user, num_users, generator(seed, "mix", user, number)) for user, number in images]
        coarse = guided_to(torch.tensor(others, device=device), model, config)
        denoiser = mixed(coarse, denoiser, config.mix_above)
    drawn = draw_noise()
    start = drawn if noise is None else noise.to(drawn)
    return sample(denoiser, start, schedule, config, draw_noise, after_step)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels (B, I, H, W) uint8, on the CPU, of scaled latents (B, Z, h, w). NotFinite where they are no numbers."""
    # In float32: a decoder in fp16 can overflow.
    decoded = vae.decode(latents / vae.config.scaling_factor)  # B I H W
    if what_is_wrong(decoded, math.inf):
        raise NotFinite("the model's images are no finite numbers, so its weights are spoilt; use an earlier model")
    return to_uint8(decoded).cpu()


def guided_to(users: Tensor, model: UserDenoiser, config: SamplingConfig) -> Denoiser:
    """Of images of the users (B,)."""
    conditional = model.user_encoder(users)  # B L D
    unconditional = model.user_encoder(users, torch.ones_like(users, dtype=torch.bool))
    return guided(model.unet, conditional, unconditional, config.guidance, config.guidance_interval)


def another(user: int, num_users: int, rng: torch.Generator) -> int:
    """One of the other users; the user itself where there is none."""
    return (user + int(torch.randint(1, num_users, (), generator=rng))) % num_users if num_users > 1 else user


def fill(folder: Path, trained: TrainedLDM, config: GenerationConfig, seed: int, paths: dict[Image, Path]) -> int:
    """Write the images that are not at their paths in the folder yet; returns how many were there already.

    Those that show nothing are counted, and that is said. Several processes divide the batches, which are those of one
    process.
    """
    missing = on_main(lambda: [image for image, path in paths.items() if not path.exists()])
    size = config.batch_size
    batches = batches_of(missing, size)[rank() :: world_size()]
    flat = 0
    cut_off = not is_complete(folder)  # perhaps after its last image
    with filling(folder, paths.values()) if (missing or cut_off) and rank() == 0 else nullcontext():
        for batch in progress(batches, desc="sampling", unit="batch") if batches else ():
            images = generate(trained.denoiser, trained.vae, trained.schedule, config, batch, seed, size)
            flat += int(are_flat(images).sum())
            for image, pixels in zip(batch, images, strict=True):
                save_picture(to_picture(pixels), paths[image])
        wait_for_all()  # the others may still write theirs
    flat = sum(gather(flat))
    if flat:
        say(f"{folder}: {flat:,} of {counted(len(missing), 'new image')} are of a single colour, so the model is "
            "spoilt, or has learned nothing", sys.stderr)  # fmt: skip
    return len(paths) - len(missing)
