"""What a VAE keeps of what tells users apart: classifiers of real images and of reconstructions, asked about both.

Everything is of the training recordings, in two halves: each is once what classifiers learn from and once what they
are asked about. The VAE has learned from these images too, so it can lose more of others, and hardly less.

N images; U users.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from train.base.units import percent
from train.config.sections import DataConfig
from train.data.dataset import UserImages, evenly
from train.data.split import numbers_of_recordings
from train.judge import network, ridge
from train.judge.interval import Figure, over_recordings
from train.judge.labelled import Labelled
from train.judge.material import labelled
from train.judge.pool import Training, at_once, seconds_per_step, steps_enough, train_all
from train.judge.sight import doubts, is_blind

MOST, LEAST = 2000, 50  # images; with fewer, a tenth of the accuracy is a handful of them
ENOUGH = 0.9  # share of the accuracy on real images that reconstructions must leave
Judge = Callable[[Tensor], Tensor]  # images, uint8 (N, C, H, W), to the users that it recognises (N,)


@dataclass(frozen=True, eq=False)
class Halves:
    """Real images of training recordings, cut in two."""

    rows: Tensor  # int64 (N,), of the data set
    real: Labelled
    recordings: Tensor  # int64 (N,): images with the same number are of one recording
    second: Tensor  # bool (N,): which half they are in
    num_users: int

    @property
    def tests(self) -> tuple[Tensor, Tensor]:
        """What is asked about, (N,) bool, once in each half; the rest is learned from."""
        return self.second, ~self.second


def in_halves(data: UserImages, training: Tensor, config: DataConfig) -> Halves | None:
    """At most 2,000 of the images `training`, half of each user's recordings (of a single one's images) in each half.

    Users with a single image are left out. None where too little is left to tell anything from.
    """
    rows = evenly(training, MOST)
    recordings = numbers_of_recordings(data, rows.tolist(), config)
    users = data.user_index[rows]
    second, there = torch.zeros_like(users, dtype=torch.bool), torch.zeros_like(users, dtype=torch.bool)
    for user in users.unique():
        own = (users == user).nonzero().flatten()
        _, part = recordings[own].unique(return_inverse=True)
        if int(part.max()) == 0:
            part = torch.arange(len(own))  # neighbours, which are alike, stay together
        second[own] = 2 * part > part.max()
        there[own] = len(own) > 1
    rows = rows[there]
    if len(rows) < LEAST or len(users[there].unique()) < 2:
        return None
    return Halves(rows, labelled(data, rows), recordings[there], second[there], len(data.user_names))


# ---- what judges say


@dataclass(frozen=True, eq=False)
class Kept:
    """Where one kind of judge is right: (N,) bool each."""

    judge: str
    halves: Halves
    real: Tensor
    on_reconstructions: Tensor
    """Of judges of real images, about reconstructions."""
    of_reconstructions: Tensor
    """Of judges that have learned from reconstructions, about real images."""

    @property
    def accuracies(self) -> tuple[float, float, float]:
        """On real images, on reconstructions, and on real images after learning from reconstructions."""
        rights = (self.real, self.on_reconstructions, self.of_reconstructions)
        return tuple(float(right.double().mean()) for right in rights)

    @property
    def chance(self) -> float:
        users = self.halves.real.users
        return float(users.bincount().max()) / len(users)

    @property
    def can_tell(self) -> bool:
        """Whether it recognises real images better than by chance, as far as the number of recordings can show."""
        return not is_blind(self.figure(self.real.double()), self.chance)

    @property
    def has_lost(self) -> bool:
        """Whether reconstructions leave less than 90% of the accuracy, and that is no accident."""
        if not self.can_tell:
            return False
        real, *others = self.accuracies
        rights = (self.on_reconstructions, self.of_reconstructions)
        return any(
            other < ENOUGH * real and self.figure(self.real.double() - right.double()).low > 0
            for other, right in zip(others, rights, strict=True)
        )

    def in_words(self) -> str:
        real, on, of = map(percent, self.accuracies)
        if not self.can_tell:
            return f"{self.judge} cannot tell: it recognises {real} of real images (chance {percent(self.chance)})"
        doubt = doubts(self.figure(self.real.double()), self.chance)
        return (f"{self.judge} recognises {real} of real images, {on} of reconstructions, and {of} of real images when "
                f"it is trained on reconstructions{'; ' * bool(doubt)}{doubt}")  # fmt: skip

    def figure(self, values: Tensor) -> Figure:
        return over_recordings(values[None], self.halves.recordings, least=-1.0)


def kept(name: str, halves: Halves, decoded: Tensor, of_real: list[Judge], of_decoded: list[Judge]) -> Kept:
    """Ask the judges of real images and of reconstructions, for each of `Halves.tests` the one that has not seen it."""
    real, users = halves.real.images, halves.real.users

    def right(judges: list[Judge], images: Tensor) -> Tensor:
        said = torch.empty_like(users)
        for judge, test in zip(judges, halves.tests, strict=True):
            said[test] = judge(images[test])
        return said == users

    return Kept(name, halves, right(of_real, real), right(of_real, decoded), right(of_decoded, real))


def learned_from(halves: Halves, images: Tensor) -> list[Labelled]:
    """What judges learn from, for each of `Halves.tests`: the other half of these images, real or reconstructed."""
    return [Labelled(images, halves.real.users).of(~test) for test in halves.tests]


def by_ridge(halves: Halves, decoded: Tensor) -> Kept:
    """What the judge in closed form says; `decoded` are the reconstructions, uint8 (N, C, H, W)."""

    def judge_of(training: Labelled) -> Judge:
        fitted = ridge.ridge_of(training, halves.num_users, halves.real)
        return lambda images: fitted.predict(ridge.seen_by_ridge(images))

    of_real, of_decoded = ([judge_of(one) for one in learned_from(halves, x)] for x in (halves.real.images, decoded))
    return kept("ridge regression", halves, decoded, of_real, of_decoded)


def by_network(halves: Halves, decoded: Tensor, seed: int, device: torch.device, say: Callable[[float], None]) -> Kept:
    """What networks say that were trained for as long as real images need; `say` is told how many seconds at most."""
    channels, users = halves.real.images.shape[1], halves.num_users
    real, made = (learned_from(halves, images) for images in (halves.real.images, decoded))
    searches_and_trainings = at_once(device) + len(real) + len(made)  # a search leaves the other threads idle
    say(searches_and_trainings * network.MOST_STEPS * seconds_per_step(real[0], users, device))
    steps = steps_enough(real[0], users, seed, device)

    def training(images: Labelled) -> Training:
        judge = network.new_network(channels, users, seed, device)
        return Training(judge, lambda: images, steps, False, seed, lambda trained: trained.recognised)

    first, second, third, fourth = train_all([training(images) for images in (*real, *made)], device)
    return kept("a network", halves, decoded, [first, second], [third, fourth])
