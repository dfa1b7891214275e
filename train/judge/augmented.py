"""Which generated images an augmented data set takes, and what a judge of training recordings knows of each.

Without sifting the first N of each user are taken. With it, copies of training images and images that look more like
somebody else are left out, and up to N more are made in their place. What is left is not ranked, since the most
typical images are the least various: where there are more than N, clusters of alike images give evenly.

N images, U users, D features, K clusters.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from train.config.sections import DataConfig
from train.data.images import read_image
from train.judge import network
from train.judge.labelled import Labelled, in_random_order
from train.judge.measures import coarse_spectra
from train.judge.pool import Training, steps_enough, train_all
from train.stages.copies import MOST, Originals
from train.stages.generate import Image

SEEDS = 3
CLUSTERS, ROUNDS = 5, 20
COPY, SOMEBODY_ELSE, ENOUGH = "copy", "somebody else", "enough without it"


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of a generated image."""

    probability: float  # of the user that it was asked for
    rival: float  # the probability of the most probable other user
    distance: float  # in pixels, to the nearest training image of its user (train/stages/copies.py)
    accused: bool  # of being a copy of that
    spectrum: Tensor  # (D,) float32: coarse row spectra

    @property
    def why_left_out(self) -> str:
        """By sifting; "" where it is good."""
        if self.accused:
            return COPY
        return SOMEBODY_ELSE if self.probability < self.rival else ""


class Judge:
    """Three networks that have seen the training recordings only, and the search for copies of them."""

    def __init__(self, training: Labelled, recordings: Tensor, num_users: int, device: torch.device):
        """`recordings` (N,) numbers those of the training images."""
        self.training, self.recordings, self.num_users, self.device = training, recordings, num_users, device
        self.features = coarse_spectra(training.images)

    @cached_property
    def networks(self) -> list[network.Network]:
        """Trained when they are first asked."""
        channels = self.training.images.shape[1]
        steps = steps_enough(self.training, self.num_users, 0, self.device)
        blank = [network.new_network(channels, self.num_users, seed, self.device) for seed in range(SEEDS)]
        trainings = [
            Training(one, lambda: self.training, steps, False, seed, lambda trained: trained)
            for seed, one in enumerate(blank)
        ]
        return train_all(trainings, self.device)

    @cached_property
    def originals(self) -> Originals:
        real = self.training
        return Originals(real.images, real.users, self.recordings, self.networks[0].features)

    def __call__(self, made: Labelled) -> list[Seen]:
        """What is known of generated images, in their order."""
        probabilities = torch.stack([one.logits(made.images).softmax(1) for one in self.networks]).mean(0)  # N U
        asked_for = made.users[:, None]
        probability = probabilities.gather(1, asked_for)[:, 0]
        rival = probabilities.scatter(1, asked_for, -1.0).amax(1)
        distance, accused = self.copies(made)
        columns = (column.tolist() for column in (probability, rival, distance, accused))
        return [Seen(*values) for values in zip(*columns, self.features(made.images), strict=True)]

    def copies(self, made: Labelled) -> tuple[Tensor, Tensor]:
        """Distance to the nearest training image of the same user, and whether an image is accused, (N,) each."""
        distance, accused = torch.empty(len(made)), torch.empty(len(made), dtype=torch.bool)
        for rows in at_most_of_each(made.users, MOST):
            part = made.of(rows)
            found = self.originals.find_copies(part.images, part.users)
            distance[rows[found.rows]], accused[rows[found.rows]] = found.distance.float(), found.accused
        return distance, accused


def read_made(paths: dict[Image, Path], config: DataConfig) -> Labelled:
    """Generated images from their files."""
    images = torch.stack([read_image(path, config) for path in paths.values()])
    return Labelled(images, torch.tensor([user for user, _ in paths]))


def at_most_of_each(users: Tensor, most: int) -> list[Tensor]:
    """Rows of `users` (N,) in as few parts as possible, with at most so many of a user in each."""
    seen: Counter[int] = Counter()
    parts: dict[int, list[int]] = {}
    for row, user in enumerate(users.tolist()):
        parts.setdefault(seen[user] // most, []).append(row)
        seen[user] += 1
    return [torch.tensor(rows) for rows in parts.values()]


@dataclass
class Choice:
    """The images that are taken, user by user, as they become known."""

    num_users: int
    per_user: int
    sift: bool
    seen: dict[Image, Seen] = field(default_factory=dict)

    @property
    def first(self) -> list[Image]:
        """The images to begin with."""
        return [(user, number) for user in range(self.num_users) for number in range(self.per_user)]

    def look_at(self, images: list[Image], seen: Sequence[Seen]) -> list[Image]:
        """Look at images that have been made; returns those to make next, until there are enough, or 2 N were made.

        As many more as will bring what is lacking, if they are as good as those before.
        """
        self.seen |= dict(zip(images, seen, strict=True))
        wanted: list[Image] = []
        for user in range(self.num_users) if self.sift else ():
            good = [not seen.why_left_out for (whose, _), seen in self.seen.items() if whose == user]
            lacking = max(self.per_user - sum(good), 0)
            more = min(math.ceil(lacking * len(good) / max(sum(good), 1)), 2 * self.per_user - len(good))
            wanted += [(user, len(good) + number) for number in range(more)]
        return wanted

    def left_out(self) -> dict[Image, str]:
        """Why each image is left out, "" for those that are taken; by user and number."""
        why = {image: self.seen[image].why_left_out if self.sift else "" for image in sorted(self.seen)}
        for user in range(self.num_users):
            good = [image for image, reason in why.items() if image[0] == user and not reason]
            if len(good) > self.per_user:
                taken = spread(torch.stack([self.seen[image].spectrum for image in good]), self.per_user)
                why |= dict.fromkeys(set(good) - {good[row] for row in taken}, ENOUGH)
        return why


def sift(users: Tensor, counts: Tensor, seen: Sequence[Seen], rng: torch.Generator) -> Tensor:
    """Rows (ascending) that sifting takes of images of `users` (N,), up to counts[u] of each, as `Choice` takes them.

    As if they were made in random order, and these were all that can be made.
    """
    taken: list[int] = []
    for order, count in zip(in_random_order(users, len(counts), rng), counts.tolist(), strict=True):
        choice = Choice(1, count, sift=True)
        wanted = choice.first
        while there := [image for image in wanted if image[1] < len(order)]:
            wanted = choice.look_at(there, [seen[order[number]] for _, number in there])
        taken += [int(order[number]) for (_, number), why in choice.left_out().items() if not why]
    return torch.tensor(sorted(taken), dtype=torch.int64)


# ---- variety


def spread(features: Tensor, count: int) -> list[int]:
    """`count` of the rows of `features` (N, D), ascending: each cluster gives its first, then its second, and so on."""
    place: Counter[int] = Counter()
    order = []
    for row, cluster in enumerate(clusters(features).tolist()):
        order.append((place[cluster], cluster, row))
        place[cluster] += 1
    return sorted(row for *_, row in sorted(order)[:count])


def clusters(features: Tensor) -> Tensor:
    """Which of at most five clusters each row of `features` (N, D) is in, (N,): k-means (Lloyd 1982).

    It begins at the row nearest to the mean, then takes the one that is farthest from all taken, so it is the same
    every time.
    """
    x = features.double()
    centres = x[torch.cdist(x, x.mean(0, keepdim=True)).argmin()][None]  # K D
    while len(centres) < min(CLUSTERS, len(x)):
        centres = torch.cat([centres, x[torch.cdist(x, centres).amin(1).argmax()][None]])
    for _ in range(ROUNDS):
        nearest = torch.cdist(x, centres).argmin(1)
        means = [x[nearest == cluster].mean(0) for cluster in range(len(centres)) if (nearest == cluster).any()]
        centres = torch.stack(means)
    return torch.cdist(x, centres).argmin(1)
