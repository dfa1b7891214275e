"""The data set: a folder of images for each user (train/data/folders.py), decoded once (train/data/pictures.py).

`N` images, `B` of them in a batch, `C` channels, `H W` pixels, on disk as uint8 (3,100 of 3x128x128: 152 MB).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.base.errors import require, some
from train.base.names import composed
from train.config.sections import DataConfig
from train.data.contrast import poor_contrast
from train.data.folders import Scan, scan
from train.data.images import to_float
from train.data.pictures import Found, read_pictures
from train.data.store import Rows, digest

MAX_UNREADABLE = 0.05  # share of the files; if more cannot be read, it is probably the wrong data set


@dataclass(frozen=True, eq=False)
class UserImages:
    """The decoded data set. Row i of `images` belongs to user `user_names[user_index[i]]`."""

    images: Tensor | Rows  # uint8 (N, C, H, W); of a folder, in its store
    user_index: Tensor  # int64 (N,)
    user_names: list[str]  # in natural order; saved with every model
    paths: list[str]  # of the images, relative to the data folder, with `/`; names in NFC, whatever the folder has

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digests(self) -> np.ndarray:
        """What tells the pixels of one image from those of others: V16 (N,)."""
        if isinstance(self.images, Rows):
            return self.images.digests
        return np.array([digest(image.contiguous().numpy()) for image in self.images], "V16")

    def batch(self, indices: Tensor, mirror: Tensor | None = None, upend: Tensor | None = None) -> Tensor:
        """Images `indices` (B,) as float32 (B, C, H, W) in [-1, 1].

        Those with `mirror` (B,) True are flipped left to right, those with `upend` (B,) True top to bottom.
        """
        x = to_float(self.images[indices])  # (B, C, H, W)
        for flip, axis in ((mirror, 3), (upend, 2)):
            if flip is not None:
                x = torch.where(flip[:, None, None, None], x.flip(axis), x)
        return x


def load_images(config: DataConfig) -> UserImages:
    """Read every image under `config.dir`; say what in the folder is not used, and which images show little."""
    found = scan(config.dir)
    if found.left_out:
        print(f"{config.dir}: not used: {found.left_out}", file=sys.stderr)
    data, read = _read(found, config)
    for line in poor_contrast(*(torch.from_numpy(x.astype(int)) for x in (read.darkest, read.brightest)), data.paths):
        print(f"{config.dir}: {line}", file=sys.stderr)
    return data


def decode(found: Scan, config: DataConfig) -> UserImages:
    """Read the images in `config.dir`. Files that cannot be read are named, counted and left out.

    UserError where they are more than one file and more than 5% of all, or all files of a user.
    """
    return _read(found, config)[0]


def _read(found: Scan, config: DataConfig) -> tuple[UserImages, Found]:
    names = [f"{user}/{composed(name)}" for user, own in zip(found.users, found.files, strict=True) for name in own]
    users = np.repeat(np.arange(len(found.users)), [len(own) for own in found.files])
    read = read_pictures(Path(config.dir), found.paths, names, config)
    unreadable, part = read.unreadable, f"{len(read.unreadable)} of {len(names)} images"
    require(len(unreadable) <= max(MAX_UNREADABLE * len(names), 1), f"{config.dir}: {part} cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}; repair or remove them: {some(unreadable)}")
    user_index = users[read.files]
    seen = set(user_index.tolist())
    without = [name for user, name in enumerate(found.users) if user not in seen]
    require(not without, f"{config.dir}: no image of {some(without)} can be read; repair or remove them: "
            f"{some(unreadable)}")
    if unreadable:
        print("\n  ".join([f"{config.dir}: left out {part}", *unreadable]), file=sys.stderr)
        names = [names[row] for row in read.files]
    return UserImages(read.images, torch.from_numpy(user_index), found.users, names), read


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of `rows` (N,), spread evenly from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def draw_flips(count: int, config: DataConfig, generator: torch.Generator) -> Tensor:
    """Whether each of `count` images is mirrored and upended, for `UserImages.batch`: (2, count) bool."""
    asked_for = torch.tensor([[config.horizontal_flip], [config.vertical_flip]])
    return (torch.rand(2, count, generator=generator) < 0.5) & asked_for
