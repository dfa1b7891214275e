"""The residual block, and the layers that halve and double the grid.

Shapes: B batch, C channels, H W grid, E width of the time embedding.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nets.checkpointing import Checkpointed


class ResnetBlock(Checkpointed):
    """Twice norm, SiLU and convolution, with a residual connection (He et al. 2016; Ho et al. 2020).

    (B, C_in, H, W) to (B, C_out, H, W). The time embedding, if any, is added between the two convolutions. The
    residual connection is a 1x1 convolution if C_in and C_out differ.
    """

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, embedding_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_dim, c_out) if embedding_dim else None
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # B C_out H W
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """The UNet's convolution of stride 2, padded on all sides: (B, C, H, W) to (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class EncoderDownsample(nn.Module):
    """The VAE's convolution of stride 2, padded at the right and the bottom only: to (B, C, H//2, W//2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (twice the grid by default), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))  # B C 2H 2W
