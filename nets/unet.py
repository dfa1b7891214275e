"""The UNet, with transformers that attend to a context (Rombach et al. 2022, section 3.3).

Weights are named as those of `diffusers`' UNet2DConditionModel and load with `strict=True` in both directions.
Shapes: B batch, C channels (C0 of the first level), H W latent grid, L context tokens, D their width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.attention import TransformerBlock
from nets.blocks import LARGEST, UNET_EPS, DownBlock, MidBlock, UpBlock, require_depth
from nets.embedding import TimestepEmbedding, sinusoidal_embedding


@dataclass(frozen=True)
class UNetConfig:
    channels: tuple[int, ...]
    """Width of each level, highest resolution first; each further level halves the grid."""
    cross_attention: tuple[bool, ...]
    """For each level, whether transformers follow its resnets."""
    cross_attention_dim: int
    """Width of a context token."""
    num_heads: int | tuple[int, ...] = 8
    """Attention heads, one number or one for each level; `diffusers` calls it `attention_head_dim`."""
    layers_per_block: int = 2
    linear_projection: bool = True
    norm_groups: int = 32
    latent_channels: int = 4
    condition_in_time_embedding: bool = False
    """Whether a projection of the mean context token is added to the time embedding."""
    sample_size: int | None = None
    """Side of the latent grid in training; written by training."""

    def __post_init__(self):
        if len(self.cross_attention) != len(self.channels):
            raise ValueError(
                f"cross_attention has {len(self.cross_attention)} entries for {len(self.channels)} channels; "
                "give one for each level"
            )
        if isinstance(self.num_heads, tuple) and len(self.num_heads) != len(self.channels):
            raise ValueError(
                f"num_heads has {len(self.num_heads)} entries for {len(self.channels)} channels; "
                "give one number, or one for each level"
            )
        positive = (*self.channels, *self.heads, self.cross_attention_dim, self.layers_per_block,
                    self.norm_groups, self.latent_channels)  # fmt: skip
        if not self.channels or min(positive) < 1 or max(positive) > LARGEST:
            raise ValueError(
                "channels, num_heads, cross_attention_dim, layers_per_block, norm_groups and latent_channels "
                f"must all be at least 1 and at most {LARGEST}"
            )
        require_depth(self.channels, self.layers_per_block)
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if channels % self.norm_groups:
                raise ValueError(f"channels {channels} cannot be divided into {self.norm_groups} norm_groups")
            if channels % heads:
                raise ValueError(f"channels {channels} cannot be divided among {heads} num_heads")
        if self.channels[0] % 2:
            raise ValueError(f"the first of channels must be even (half sines, half cosines), not {self.channels[0]}")

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self.num_heads if isinstance(self.num_heads, tuple) else (self.num_heads,) * len(self.channels)


class UNet2DConditionModel(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, last = config.channels, len(config.channels) - 1
        heads = [h if attends else None for h, attends in zip(config.heads, config.cross_attention, strict=True)]
        embedding_dim = 4 * channels[0]
        common = {
            "embedding_dim": embedding_dim,
            "groups": config.norm_groups,
            "context_dim": config.cross_attention_dim,
            "linear_projection": config.linear_projection,
        }

        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], embedding_dim)
        self.class_embedding = (
            nn.Linear(config.cross_attention_dim, embedding_dim) if config.condition_in_time_embedding else None
        )
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()

        c = channels[0]
        skips = [c]
        for level, c_out in enumerate(channels):
            self.down_blocks.append(
                DownBlock(c, c_out, layers=config.layers_per_block, num_heads=heads[level],
                          downsample=level < last, **common)
            )  # fmt: skip
            skips += [c_out] * (config.layers_per_block + (level < last))
            c = c_out
        self.mid_block = MidBlock(c, num_heads=config.heads[-1], **common)
        for level, c_out in reversed(list(enumerate(channels))):
            read = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(
                UpBlock(c, c_out, read, num_heads=heads[level], upsample=level > 0, **common)
            )
            c = c_out

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, channels[0], UNET_EPS)
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor) -> Tensor:
        """The prediction (B, 4, H, W) for noisy latents `sample` (B, 4, H, W).

        `timestep` is a number or (B,); `encoder_hidden_states`, the context, is (B, L, D). H and W may differ and be
        odd: half of an odd grid is rounded up, and upsampling returns to the size of the skip.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))  # B
        context = encoder_hidden_states  # B L D
        sinusoids = sinusoidal_embedding(timestep, self.config.channels[0])  # B C0
        embedding = self.time_embedding(sinusoids.to(sample.dtype))  # B 4*C0
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(context.mean(dim=1))

        x = self.conv_in(sample)  # B C0 H W
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, embedding, context)  # B C H/2 W/2
            skips += outputs
        x = self.mid_block(x, embedding, context)
        for block in self.up_blocks:
            x = block(x, skips, embedding, context)  # B C 2H 2W
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # B 4 H W

    def parameters_without_effect_on_one_token(self) -> list[nn.Parameter]:
        """The parameters that no gradient reaches if the context is a single token."""
        blocks = [m for m in self.modules() if isinstance(m, TransformerBlock)]
        return [p for block in blocks for p in block.parameters_without_effect_on_one_token()]
