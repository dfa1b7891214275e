"""The variational autoencoder between images and latents (Rombach et al. 2022, section 3.1).

Weights are named as those of `diffusers`' AutoencoderKL and load with `strict=True` in both directions.
Shapes: B batch, I image channels, C channels, H W image grid, f = 2^(levels-1), Z latent channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.blocks import LARGEST, VAE_EPS, DecoderBlock, EncoderBlock, VAEMidBlock, require_depth


@dataclass(frozen=True)
class VAEConfig:
    channels: tuple[int, ...]
    """Width of each level, highest resolution first; each further level halves the grid."""
    layers_per_block: int = 1
    """Resnet blocks in each level of the encoder; the decoder has one more."""
    latent_channels: int = 4
    image_channels: int = 3
    norm_groups: int = 32
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float | None = None
    """1 / standard deviation of the latents of the training images; None until training has measured it."""
    sample_size: int | None = None
    """Side of the training images in pixels; written by training."""

    def __post_init__(self):
        positive = (*self.channels, self.layers_per_block, self.latent_channels, self.norm_groups)
        if not self.channels or min(positive) < 1 or max(positive) > LARGEST:
            raise ValueError(
                "channels, layers_per_block, latent_channels and norm_groups must all be at least 1 and at most "
                f"{LARGEST}"
            )
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (grey) or 3 (colour), not {self.image_channels}")
        require_depth(self.channels, self.layers_per_block)
        for channels in self.channels:
            if channels % self.norm_groups:
                raise ValueError(f"channels {channels} cannot be divided into {self.norm_groups} norm_groups")
        if self.scaling_factor is not None and not 1e-6 <= self.scaling_factor <= 1e6:
            raise ValueError(f"scaling_factor must be from 1e-6 to 1e6, not {self.scaling_factor}")

    @property
    def downscale(self) -> int:
        """Image pixels per position of the latent grid, along one side."""
        return 2 ** (len(self.channels) - 1)


class DiagonalGaussian:
    """The encoder's output: a normal distribution with independent components, `mean` and `logvar` (B, Z, h, w).

    They are float32, also under autocast.
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.float().chunk(2, dim=1)  # exp() and the sum over latents overflow in fp16
        self.logvar = logvar.clamp(-30.0, 20.0)  # so that exp() below stays finite and above zero

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype,
                            device=generator.device if generator else self.mean.device)  # fmt: skip
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, in nats, summed over each sample's latents: (B,)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class Encoder(nn.Module):
    """Images (B, I, H, W) to the moments of their latents (B, 2Z, H/f, W/f)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups, last = config.channels, config.norm_groups, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            EncoderBlock(channels[max(level - 1, 0)], c_out, layers=config.layers_per_block, groups=groups,
                         downsample=level < last)
            for level, c_out in enumerate(channels)
        )  # fmt: skip
        self.mid_block = VAEMidBlock(channels[-1], groups=groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], VAE_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # B C H W
        for block in self.down_blocks:
            x = block(x)  # B C H/2 W/2
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # B 2Z H/f W/f


class Decoder(nn.Module):
    """Latents (B, Z, h, w) to images (B, I, f*h, f*w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups, last = config.channels[::-1], config.norm_groups, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = VAEMidBlock(channels[0], groups=groups)
        self.up_blocks = nn.ModuleList(
            DecoderBlock(channels[max(level - 1, 0)], c_out, layers=config.layers_per_block + 1, groups=groups,
                         upsample=level < last)
            for level, c_out in enumerate(channels)
        )  # fmt: skip
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], VAE_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))  # B C h w
        for block in self.up_blocks:
            x = block(x)  # B C 2h 2w
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # B I H W


class AutoencoderKL(nn.Module):
    """Its latents are not scaled; the diffusion model is given latents times `config.scaling_factor`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.post_quant_conv else nn.Identity()

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Images (B, I, H, W) in [-1, 1] to the distribution of their latents (B, Z, H/f, W/f)."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to images (B, I, f*h, f*w), roughly in [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))
