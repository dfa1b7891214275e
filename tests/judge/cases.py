"""Generated images of which it is known what they are worth, for a judge that knows it not."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.judge.made_up import material
from train.data.walkers import PICTURES_PER_RECORDING, simulate
from train.judge.labelled import Labelled
from train.judge.material import Material, TestSet

Made = Callable[[Labelled, Labelled, torch.Generator], Labelled]
"""From the real training images, from as many of new recordings, with random numbers."""


def resampled(training: Labelled, _: Labelled, rng: torch.Generator) -> Labelled:
    """As many images of each user, drawn with replacement."""
    rows = [draw(training.users == user, rng) for user in training.users.unique()]
    return training.of(torch.cat(rows))


def draw(among: Tensor, rng: torch.Generator) -> Tensor:
    rows = among.nonzero().flatten()
    return rows[torch.randint(len(rows), rows.shape, generator=rng)]


def noise(training: Labelled, _: Labelled, rng: torch.Generator) -> Labelled:
    images = torch.randint(0, 256, training.images.shape, generator=rng)
    return Labelled(images.to(torch.uint8), training.users)


def shuffled(_: Labelled, new: Labelled, rng: torch.Generator) -> Labelled:
    """New recordings under the names of anybody."""
    return Labelled(new.images, new.users[torch.randperm(len(new), generator=rng)])


def blurred(training: Labelled, new: Labelled, rng: torch.Generator) -> Labelled:
    drawn = resampled(training, new, rng)
    padded = F.pad(drawn.images.float(), (2, 2, 2, 2), mode="replicate")
    return Labelled(F.avg_pool2d(padded, 5, stride=1).round().to(torch.uint8), drawn.users)


def collapsed(training: Labelled, _: Labelled, rng: torch.Generator) -> Labelled:
    """One image of each user, again and again."""
    first = {user: int(draw(training.users == user, rng)[0]) for user in training.users.unique().tolist()}
    return training.of(torch.tensor([first[user] for user in training.users.tolist()]))


def swapped(training: Labelled, new: Labelled, rng: torch.Generator) -> Labelled:
    """The first two users under each other's names."""
    drawn = resampled(training, new, rng)
    return Labelled(drawn.images, torch.where(drawn.users < 2, 1 - drawn.users, drawn.users))


CASES: dict[str, Made] = {
    "exact copies": lambda training, new, rng: training,
    "resampled": resampled,
    "noise": noise,
    "shuffled labels": shuffled,
    "blurred": blurred,
    "collapsed": collapsed,
    "two users swapped": swapped,
    "new recordings": lambda training, new, rng: new,
}


@cache
def recorded(people: range, recordings: int, side: int, seed: int) -> tuple[Labelled, Tensor]:
    """Pictures of so many recordings of these people (numbered from 1), and the numbers of the recordings."""
    pictures = [image for *_, image in simulate(people, PICTURES_PER_RECORDING * recordings, side, seed)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    number = torch.arange(len(people) * recordings).repeat_interleave(PICTURES_PER_RECORDING)
    return Labelled(images, number // recordings), number


def case(name: str, people: range, side: int, seed: int, trained: int, recordings: int) -> Material:
    """The first `trained` recordings of each person train, as many are new, and the rest are held out."""
    real, number = recorded(people, recordings, side, seed)
    place = number % recordings
    train, new, out = place < trained, (trained <= place) & (place < 2 * trained), place >= 2 * trained
    made = CASES[name](real.of(train), real.of(new), torch.Generator().manual_seed(seed))
    return material(real.of(train), made, TestSet(real.of(out), number[out]), number[train])
