"""Images of users: noise, through the sampler and the VAE's decoder, to pixels.

Shapes: N images, B of them at a time, Z h w latents, I image channels, H W image, L D context.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.guidance import guided
from diffusion.sampling import SamplingConfig, sample
from diffusion.schedule import Schedule
from nets.vae import AutoencoderKL
from train.base.randomness import generator
from train.data.dataset import to_uint8
from train.stages.denoising import UserDenoiser


@torch.no_grad()
def generate(
    model: UserDenoiser,
    vae: AutoencoderKL,
    schedule: Schedule,
    config: SamplingConfig,
    images: Sequence[tuple[int, int]],
    seed: int,
    batch_size: int,
) -> Tensor:
    """One image for each (user, number) of `images`: uint8 (N, I, H, W).

    An image's noise depends on the seed, the user and the number only, so it is the same image whatever the
    batch. Models must be in evaluation mode and on one device.
    """
    device = next(model.parameters()).device
    side = model.unet.config.sample_size
    shape = (model.unet.config.latent_channels, side, side)
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    pixels = []
    for batch in batches:
        chances = [generator(seed, "images", user, number) for user, number in batch]

        def draw_noise(chances: list[torch.Generator] = chances) -> Tensor:
            noise = [torch.randn(shape, generator=chance) for chance in chances]
            return torch.stack(noise).to(device)  # B Z h w

        users = torch.tensor([user for user, _ in batch], device=device)
        conditional = model.user_encoder(users)  # B L D
        unconditional = model.user_encoder(users, torch.ones_like(users, dtype=torch.bool))
        denoiser = guided(model.unet, conditional, unconditional, config.guidance, config.guidance_interval)
        latents = sample(denoiser, draw_noise(), schedule, config, draw_noise)  # B Z h w
        # In float32: a decoder in fp16 can overflow.
        pixels.append(to_uint8(vae.decode(latents / vae.config.scaling_factor)).cpu())  # B I H W
    return torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
