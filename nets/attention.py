"""Multi-head attention, feed-forward layer, and the transformer over a grid.

Shapes: B batch, C channels, H W grid, N = H*W grid positions, L context tokens, D width of the context,
h heads.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from nets.checkpointing import Checkpointed
from nets.linear import Linear


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) of queries (B, N, C) over a context (B, L, D)."""

    def __init__(self, channels: int, context_dim: int, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_k = Linear(context_dim, channels, bias=qkv_bias)
        self.to_v = Linear(context_dim, channels, bias=qkv_bias)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (self._split_heads(t) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        out = F.scaled_dot_product_attention(q, k, v)  # B h N C/h
        return self.to_out[0](out.transpose(1, 2).flatten(2))  # B N C

    def attend_to_one_token(self, context: Tensor) -> Tensor:
        """The result (B, 1, C) of `forward` for any queries if the context is a single token (B, 1, D).

        A softmax over one key is 1, so the result does not depend on queries and keys, and the gradients of `to_q` and
        `to_k` would be exactly zero.
        """
        return self.to_out[0](self.to_v(context))

    def _split_heads(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # B h N C/h


class GridSelfAttention(Attention, Checkpointed):
    """The VAE's attention: normalisation, then one head over the positions of a grid (B, C, H, W)."""

    def __init__(self, channels: int, groups: int, eps: float):
        super().__init__(channels, channels, num_heads=1, qkv_bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # B N C
        out = super().forward(tokens, tokens)
        return x + out.transpose(1, 2).unflatten(2, x.shape[-2:])  # B C H W


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020, eq. 6): (B, N, c_in) to (B, N, c_out)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.proj = Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, then a linear layer back.

    The identity stands for the dropout of `diffusers`, so that the second layer is named `net.2` as there.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        widen, _, narrow = self.net
        return narrow(widen(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, each after a LayerNorm and with a residual connection."""

    def __init__(self, channels: int, num_heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_dim, num_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.norm1(x)
        x = x + self.attn1(tokens, tokens)
        if context.shape[1] == 1:
            x = x + self.attn2.attend_to_one_token(context)
        else:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))

    def parameters_without_effect_on_one_token(self) -> list[nn.Parameter]:
        """The parameters that `forward` does not use, and no gradient reaches, if the context is one token."""
        return [*self.norm2.parameters(), *self.attn2.to_q.parameters(), *self.attn2.to_k.parameters()]


class SpatialTransformer(Checkpointed):
    """A transformer block over the positions of a grid (B, C, H, W), conditioned on (B, L, D).

    Rombach et al. 2022, appendix E.2.1. `linear_projection`: whether the layers into and out of the block are linear
    (Stable Diffusion 2) or 1x1 convolutions (Stable Diffusion 1), the same function with weights of another shape.
    """

    def __init__(self, channels: int, num_heads: int, context_dim: int, groups: int, linear_projection: bool):
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, context_dim)])
        self.proj_out = Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm(x)
        if self.linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # B N C
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # B N C
        h = self.transformer_blocks[0](h, context)
        if self.linear_projection:
            h = self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[-2:])  # B C H W
        else:
            h = self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))  # B C H W
        return x + h
