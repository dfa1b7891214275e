"""Images with the users that they are of, or are meant to be of: what classifiers learn from and are tested on.

N images, C channels, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labelled:
    images: Tensor  # uint8 (N, C, H, W)
    users: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.users)

    def of(self, rows: Tensor) -> "Labelled":
        """Those in `rows`, indices or a mask."""
        return Labelled(self.images[rows], self.users[rows])

    def with_more(self, other: "Labelled") -> "Labelled":
        return Labelled(torch.cat([self.images, other.images]), torch.cat([self.users, other.users]))


def draw_of_each(users: Tensor, counts: Tensor, rng: torch.Generator) -> Tensor:
    """Rows (ascending) of at most counts[u] randomly drawn entries of each user u in `users` (N,)."""
    own = in_random_order(users, len(counts), rng)
    return torch.cat([rows[:count] for rows, count in zip(own, counts.tolist(), strict=True)]).sort().values


def in_random_order(users: Tensor, num_users: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """The rows of each user in `users` (N,)."""
    order = torch.randperm(len(users), generator=rng)
    order = order[users[order].argsort(stable=True)]
    return order.split(users.bincount(minlength=num_users).tolist())
