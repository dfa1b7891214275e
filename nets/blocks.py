"""The blocks of the UNet and the VAE: resnet blocks at one resolution, then a change of resolution.

Shapes: B batch, C channels, H W grid, E width of the time embedding, L context tokens, D their width.
Module lists are named as in `diffusers`, so that weights can be exchanged in both directions.
"""

from itertools import zip_longest

import torch
from torch import Tensor, nn

from nets.attention import GridSelfAttention, SpatialTransformer
from nets.resnet import Downsample, EncoderDownsample, ResnetBlock, Upsample

UNET_EPS = 1e-5
VAE_EPS = 1e-6
LARGEST = 2**16  # of a width or a count: more is a typing error, and tensor sizes must not overflow
DEEPEST = 32  # likewise of levels, and of resnet blocks in each: thousands take minutes to be made


def require_depth(channels: tuple[int, ...], layers_per_block: int) -> None:
    if max(len(channels), layers_per_block) > DEEPEST:
        raise ValueError(
            f"channels are of {len(channels)} levels and layers_per_block is {layers_per_block}; there can be at most "
            f"{DEEPEST} of each"
        )


class DownBlock(nn.Module):
    """One level of the UNet's down path; `num_heads` is None for a level without cross-attention."""

    def __init__(
        self, c_in: int, c_out: int, *, layers: int, embedding_dim: int, groups: int, num_heads: int | None,
        context_dim: int, linear_projection: bool, downsample: bool,
    ):  # fmt: skip
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups, UNET_EPS, embedding_dim) for i in range(layers)
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(c_out, num_heads, context_dim, groups, linear_projection)
            for _ in range(layers if num_heads else 0)
        )
        self.downsamplers = nn.ModuleList([Downsample(c_out)] if downsample else [])

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, c_in, H, W) to (B, c_out, H/2, W/2), and the skips: the output of each layer, for the up path."""
        skips = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, embedding)  # B c_out H W
            if attention is not None:
                x = attention(x, context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)  # B c_out H/2 W/2
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The UNet's middle block: resnet, transformer, resnet."""

    def __init__(
        self, channels: int, *, embedding_dim: int, groups: int, num_heads: int, context_dim: int,
        linear_projection: bool,
    ):  # fmt: skip
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups, UNET_EPS, embedding_dim) for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            [SpatialTransformer(channels, num_heads, context_dim, groups, linear_projection)]
        )

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[0](x, embedding)
        x = self.attentions[0](x, context)
        return self.resnets[1](x, embedding)


class UpBlock(nn.Module):
    """One level of the UNet's up path; each resnet also takes the last skip, and removes it from the list."""

    def __init__(
        self, c_in: int, c_out: int, skip_channels: list[int], *, embedding_dim: int, groups: int,
        num_heads: int | None, context_dim: int, linear_projection: bool, upsample: bool,
    ):  # fmt: skip
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock((c_in if i == 0 else c_out) + c_skip, c_out, groups, UNET_EPS, embedding_dim)
            for i, c_skip in enumerate(skip_channels)
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(c_out, num_heads, context_dim, groups, linear_projection)
            for _ in range(len(skip_channels) if num_heads else 0)
        )
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor) -> Tensor:
        """(B, c_in, H, W) to (B, c_out, H', W'), where H' W' is the grid of the skips that remain."""
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(torch.cat([x, skips.pop()], dim=1), embedding)  # B c_out H W
            if attention is not None:
                x = attention(x, context)
        for upsample in self.upsamplers:
            x = upsample(x, size=skips[-1].shape[-2:])  # B c_out 2H 2W, or one less for an odd grid
        return x


class EncoderBlock(nn.Module):
    """One level of the VAE's encoder: (B, c_in, H, W) to (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int, *, layers: int, groups: int, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups, VAE_EPS) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([EncoderDownsample(c_out)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class VAEMidBlock(nn.Module):
    """The middle block of encoder and decoder: resnet, self-attention, resnet."""

    def __init__(self, channels: int, *, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, VAE_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([GridSelfAttention(channels, groups, VAE_EPS)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DecoderBlock(nn.Module):
    """One level of the VAE's decoder: (B, c_in, H, W) to (B, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int, *, layers: int, groups: int, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups, VAE_EPS) for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x
