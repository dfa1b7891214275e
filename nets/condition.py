"""The condition: a user's index becomes the context that the UNet attends to.

Shapes: B batch, L = tokens_per_user, D width of a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nets.blocks import LARGEST


@dataclass(frozen=True)
class UserEncoderConfig:
    dim: int
    """Width of a token: the UNet's `cross_attention_dim`."""
    num_users: int | None = None
    """None: as many as the data folder has; written by training."""
    tokens_per_user: int = 1
    dropout: float = 0.1

    def __post_init__(self):
        counts = (self.dim, self.tokens_per_user, 1 if self.num_users is None else self.num_users)
        if min(counts) < 1 or max(counts) > LARGEST:
            raise ValueError(f"dim, tokens_per_user and num_users must all be at least 1 and at most {LARGEST}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")


class UserConditionEncoder(nn.Module):
    """A table of learned tokens, and a learned row that stands for "any user".

    Two kinds of chance are kept apart. `dropout` blanks single components while training, so that no
    component carries a user alone. Leaving the whole condition out, which classifier-free guidance needs
    (Ho and Salimans 2022), is the caller's choice for each sample: `unconditional`.
    """

    def __init__(self, config: UserEncoderConfig):
        super().__init__()
        if config.num_users is None:
            raise ValueError("the number of users is not known yet: num_users is None")
        self.config = config
        width = config.tokens_per_user * config.dim
        self.embedding = nn.Embedding(config.num_users, width)
        self.unconditional = nn.Parameter(torch.randn(1, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, user_index: Tensor, unconditional: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, L, D) of users (B,); of "any user" wherever the mask `unconditional` (B,) is True.

        `keep` (B, L*D) says which components dropout leaves; without it, dropout draws them by itself.
        """
        rows = self.embedding(user_index)  # B L*D
        if unconditional is not None:
            rows = torch.where(unconditional[:, None], self.unconditional, rows)
        rows = self.dropout(rows) if keep is None else rows * keep / (1 - self.config.dropout)
        return rows.unflatten(-1, (self.config.tokens_per_user, self.config.dim))  # B L D

    def draw_keep(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Which components (B, L*D) dropout leaves, drawn so that a batch can be cut without changing them."""
        width = self.embedding.embedding_dim
        return torch.rand(batch_size, width, generator=generator) >= self.config.dropout
