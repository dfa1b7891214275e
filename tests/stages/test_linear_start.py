"""A VAE that begins as a linear one: its latents are principal components, and its decoder is the best without loss."""

import pytest
import torch
from torch import Tensor

from nets.vae import AutoencoderKL, VAEConfig
from tests.oracle import diffusers_vae
from train.stages.linear_start import has_room, start_linear

SHAPES = {
    "three levels": VAEConfig((16, 32, 64), latent_channels=8, norm_groups=4),
    "equal widths, no shortcuts": VAEConfig((32, 32), latent_channels=4, norm_groups=4),
    "grey": VAEConfig((8, 16), latent_channels=3, image_channels=1, norm_groups=2),
    "one level": VAEConfig((16,), latent_channels=2, norm_groups=4),
    "more latents than there are pixels": VAEConfig((16, 16), latent_channels=16, image_channels=1, norm_groups=2),
    "two blocks a level, no quant_conv": VAEConfig(
        (16, 32), layers_per_block=2, norm_groups=4, quant_conv=False, post_quant_conv=False
    ),
}


def textures(config: VAEConfig, count: int = 24, side: int = 16) -> Tensor:
    """Images whose neighbouring pixels are alike, as those of most pictures are."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(count, config.image_channels, side + 4, side + 4, generator=rng)
    x = torch.nn.functional.avg_pool2d(noise, 5, stride=1)  # N I side side
    return (1.5 * x).clamp(-1, 1)


def started(config: VAEConfig, images: Tensor, kl_weight: float = 1e-4) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(config).eval()
    start_linear(vae, images, kl_weight)
    return vae


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_latents_are_principal_components(config):
    images = textures(config)
    z = started(config, images).encode(images).mean.movedim(1, -1).flatten(0, 2).double()  # N Z
    z = z[:, : config.image_channels * config.downscale**2]
    torch.testing.assert_close(z.T.corrcoef(), torch.eye(z.shape[1]).double(), atol=0.1, rtol=0)
    assert (z.std(0).diff() < 0).all()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_reconstruction_is_linear(config):
    images = textures(config)
    vae = started(config, images)

    def through(x: Tensor) -> Tensor:
        return vae.decode(vae.encode(x).mean)

    a, b = images[:8], images[8:16]
    error = through((a + b) / 2) - (through(a) + through(b)) / 2
    assert error.square().mean() < 1e-3 * through(a).var()


@torch.no_grad()
def test_latents_of_all_components_lose_nothing():
    config = VAEConfig((16, 32), latent_channels=12, norm_groups=4)  # 12 numbers for each 2x2 patch of three colours
    images = textures(config)
    z = started(config, images).encode(images).mean
    seen = z.movedim(1, -1).flatten(0, 2)
    patches = torch.nn.functional.pixel_unshuffle(images, 2).movedim(1, -1).flatten(0, 2)
    design = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
    found = design @ torch.linalg.lstsq(design, patches).solution
    assert (found - patches).square().mean() < 1e-3 * patches.var()


@torch.no_grad()
def test_what_upsampling_can_draw_is_decoded():
    config = VAEConfig((16, 32, 64), latent_channels=3, norm_groups=4)
    coarse = textures(config, side=4)
    images = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="nearest")
    vae = started(config, images)
    assert (vae.decode(vae.encode(images).mean) - images).square().mean() < 1e-3 * images.var()


@torch.no_grad()
def test_posterior_balances_error_and_kl():
    """Far from it the sum is higher. Near it, the least is moved by what the decoder loses of an error."""
    config, weight = VAEConfig((16, 32), latent_channels=12, norm_groups=4), 0.01
    images = textures(config)
    vae = started(config, images, weight)
    posterior, noise = vae.encode(images), torch.randn(1, 12, 8, 8)

    def loss(factor: float) -> float:
        std = posterior.std * factor**0.5
        moved = torch.cat([posterior.mean + std * noise, posterior.mean - std * noise])
        error = (vae.decode(moved) - vae.decode(posterior.mean).repeat(2, 1, 1, 1)).square().mean()
        kl = 0.5 * (posterior.mean.square() + std.square() - 1 - 2 * std.log()).mean()
        return float(error + weight * kl)

    assert loss(1.0) < min(loss(1 / 16), loss(16.0))


@torch.no_grad()
def test_diffusers_computes_the_same():
    config = SHAPES["three levels"]
    images = textures(config)
    vae = started(config, images)
    theirs = diffusers_vae(config)
    theirs.load_state_dict(vae.state_dict())
    z = vae.encode(images).mean
    torch.testing.assert_close(theirs.encode(images).latent_dist.mean, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.decode(z).sample, vae.decode(z), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_of_one_colour_are_no_trouble():
    config = SHAPES["three levels"]
    vae = started(config, torch.full((4, 3, 16, 16), 0.5))
    assert vae.decode(vae.encode(textures(config)).mean).isfinite().all()


@pytest.mark.parametrize(
    ("channels", "groups", "image_channels", "room"),
    [((128, 256, 512), 32, 3, True), ((16, 32), 8, 3, False), ((8, 8), 2, 3, False), ((8, 8), 2, 1, True)],
)
def test_room_is_four_channels_to_a_group(channels, groups, image_channels, room):
    assert has_room(VAEConfig(channels, norm_groups=groups, image_channels=image_channels)) == room
