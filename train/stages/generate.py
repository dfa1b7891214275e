"""Generate images of users: sample latents from noise, and decode them to pixels.

Shapes: N images, B of them at a time, Z h w latents, I image channels, H W image, L D context.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.guidance import guided
from diffusion.sampling import SamplingConfig, sample
from diffusion.schedule import Schedule
from nets.denoiser import UserDenoiser
from nets.vae import AutoencoderKL
from train.base.processes import on_main, rank, wait_for_all, world_size
from train.base.progress import progress
from train.base.randomness import generator
from train.config.sections import GenerationConfig
from train.data.images import save_picture, to_picture, to_uint8
from train.runs.final_model import TrainedLDM

Image = tuple[int, int]  # the user's index, and the number of the image among those of the user


@torch.no_grad()
def generate(
    model: UserDenoiser, vae: AutoencoderKL, schedule: Schedule, config: SamplingConfig,
    images: Sequence[Image], seed: int, batch_size: int,
) -> Tensor:  # fmt: skip
    """One image for each (user, number) of `images`: uint8 (N, I, H, W).

    An image's noise depends only on the seed, the user and the number, so the image is the same in any batch: on the
    CPU bit for bit in batches of one size, and to within one level of 255 in one of another size, whose sums are taken
    in another order. The models must be in evaluation mode and on one device.
    """
    device, unet, pixels = next(model.parameters()).device, model.unet.config, []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        rngs = [generator(seed, "images", user, number) for user, number in batch]

        def draw_noise(rngs: list[torch.Generator] = rngs) -> Tensor:
            shape = (unet.latent_channels, unet.sample_size, unet.sample_size)
            return torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device)  # B Z h w

        users = torch.tensor([user for user, _ in batch], device=device)
        conditional = model.user_encoder(users)  # B L D
        unconditional = model.user_encoder(users, torch.ones_like(users, dtype=torch.bool))
        denoiser = guided(model.unet, conditional, unconditional, config.guidance, config.guidance_interval)
        latents = sample(denoiser, draw_noise(), schedule, config, draw_noise)  # B Z h w
        # In float32: a decoder in fp16 can overflow.
        pixels.append(to_uint8(vae.decode(latents / vae.config.scaling_factor)).cpu())  # B I H W
    return torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8)


def fill(trained: TrainedLDM, config: GenerationConfig, seed: int, paths: dict[Image, Path]) -> int:
    """Write the images that are not at their paths yet; returns how many were there already.

    Several processes divide the batches, which are those of one process.
    """
    missing = on_main(lambda: [image for image, path in paths.items() if not path.exists()])
    size = config.batch_size
    batches = [missing[start : start + size] for start in range(0, len(missing), size)][rank() :: world_size()]
    for batch in progress(batches, desc="sampling", unit="batch") if batches else ():
        images = generate(trained.denoiser, trained.vae, trained.schedule, config, batch, seed, size)
        for image, pixels in zip(batch, images, strict=True):
            save_picture(to_picture(pixels), paths[image])
    wait_for_all()  # the others may still write theirs
    return len(paths) - len(missing)
