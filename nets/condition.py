"""The condition: turns a user's index into the context tokens that the UNet attends to.

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
    """None: the number of users in the data folder; written by training."""
    tokens_per_user: int = 1
    dropout: float = 0.1

    def __post_init__(self):
        counts = (self.dim, self.tokens_per_user, 1 if self.num_users is None else self.num_users)
        if min(counts) < 1 or max(counts) > LARGEST:
            raise ValueError(f"dim, tokens_per_user and num_users must all be at least 1 and at most {LARGEST}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")


class UserConditionEncoder(nn.Module):
    """A table of learned tokens for each user, and one learned row for "any user".

    `dropout` zeroes single components in training, so that no component alone identifies a user. Dropping the whole
    condition, which classifier-free guidance needs (Ho and Salimans 2022), is up to the caller: `unconditional`.
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
        """Tokens (B, L, D) of users (B,), or of "any user" where the mask `unconditional` (B,) is True.

        `keep` (B, L*D) is the mask of the components that dropout keeps; None: dropout draws it.
        """
        rows = self.embedding(user_index)  # B L*D
        if unconditional is not None:
            rows = torch.where(unconditional[:, None], self.unconditional, rows)
        rows = self.dropout(rows) if keep is None else rows * keep / (1 - self.config.dropout)
        return rows.unflatten(-1, (self.config.tokens_per_user, self.config.dim))  # B L D

    def draw_keep(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """The dropout mask (B, L*D) of a whole batch, drawn at once so that micro-batches do not change it."""
        width = self.embedding.embedding_dim
        return torch.rand(batch_size, width, generator=generator) >= self.config.dropout
