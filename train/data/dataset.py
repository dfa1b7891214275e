"""The data set: a folder of images for each user, decoded once into memory.

    data/ID1/walk1_000.png      the folder's name is the user's name
    data/ID1/walk1_001.png
    data/ID2/...

`N` images, `B` of them in a batch, `C` channels, `H W` pixels, in memory as uint8 (3,100 of 3x128x128: 152 MB).
"""

import itertools
import math
import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.base.errors import CONTROL, UserError, require, some
from train.base.folders import require_complete
from train.base.progress import progress
from train.base.units import GiB
from train.config.sections import DataConfig
from train.data.images import SUFFIXES, read_image, to_float

MAX_UNREADABLE = 0.05  # share of the files; if more cannot be read, it is probably the wrong data set


# ---- folders


def natural_key(name: str) -> tuple:
    """Sort key for natural order: `ID2` before `ID10`; case decides only between otherwise equal names."""
    parts = re.split("([0-9]+)", name.casefold())  # text and digits in turn, so keys always compare
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def scan(folder: str | Path) -> tuple[list[str], list[list[Path]]]:
    """The users' names in natural order, and for each the image files, in natural order too.

    Hidden entries, files without an image's suffix and folders within a user's folder are ignored. UserError where
    there is no such folder, no user, a user without images, or two users whose names differ in case only.
    """
    folder = Path(folder)
    require(os.path.isdir(folder), f"{folder}: no such folder; data.dir is what holds a folder of images per user")
    require_complete(folder)
    entries = _visible(folder)
    users = [entry for entry in entries if os.path.isdir(entry)]
    files = [[entry for entry in _visible(user) if entry.suffix.lower() in SUFFIXES] for user in users]
    names = [user.name for user in users]
    for entry in entries:  # otherwise a user would be missing without any notice
        lost = entry.is_symlink() and not os.path.exists(entry)
        require(not lost, f"{entry}: is a link to nowhere; repair or remove it")
    require(users, f"{folder}: there is no user in it; put each user's images into a folder named after the user, "
            f"as in {folder / 'ID1' / 'image.png'}")
    for path in [*users, *itertools.chain(*files)]:
        writable = not CONTROL.search(path.name)
        require(writable, f"{folder}: rename {path.name!r}; such a name cannot be written into a text file")
    empty = [user for user, own in zip(users, files, strict=True) if not own]
    deeper = empty and any(os.path.isdir(entry) for entry in _visible(empty[0]))
    instead = f"; if the users are in there, give {empty[0]} as data.dir" if deeper else ""
    require(not empty, f"{folder}: no image directly in the folder of {some([user.name for user in empty])}; "
            f"put images there ({' '.join(SUFFIXES)}) or remove the folder{instead}")
    seen: dict[str, str] = {}
    for name in names:  # the output folders of two users would be the same on Windows and macOS
        same = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        alike = f"{folder}: users {same!r} and {name!r} differ in case only, or in how accents are stored; rename one"
        require(same == name, alike)
    return names, files


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, in natural order."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    return sorted(entries, key=lambda entry: natural_key(entry.name))


# ---- images


@dataclass(frozen=True, eq=False)
class UserImages:
    """The decoded data set. Row i of `images` belongs to user `user_names[user_index[i]]`."""

    images: Tensor  # uint8 (N, C, H, W)
    user_index: Tensor  # int64 (N,)
    user_names: list[str]  # in natural order; saved with every model
    paths: list[str]  # of the images, relative to the data folder, with `/`

    def __len__(self) -> int:
        return len(self.paths)

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
    """Decode every image under `config.dir`. Files that cannot be read are named, counted and left out.

    UserError where they are more than 5% of all files or all files of a user.
    """
    user_names, files = scan(config.dir)
    todo = [(user, path) for user, own in enumerate(files) for path in own]
    shape = (len(todo), config.channels, config.resolution, config.resolution)
    try:
        images = torch.from_numpy(np.empty(shape, np.uint8))
    except MemoryError:
        raise UserError(f"{config.dir}: {len(todo)} images at data.resolution {config.resolution} take "
                        f"{math.prod(shape) / GiB:.0f} GiB, more memory than there is; lower data.resolution") from None
    user_index, paths, unreadable = [], [], []
    for user, path in progress(todo, desc="reading images", unit="", leave=False):
        try:
            images[len(paths)] = read_image(path, config)
            user_index.append(user)
            paths.append(path.relative_to(config.dir).as_posix())
        except UserError as error:
            unreadable.append(str(error))
    part = f"{len(unreadable)} of {len(todo)} images"
    require(len(unreadable) <= MAX_UNREADABLE * len(todo), f"{config.dir}: {part} cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}; repair or remove them: {some(unreadable)}")
    if unreadable:
        print("\n  ".join([f"{config.dir}: left out {part}", *unreadable]), file=sys.stderr)
    seen = set(user_index)
    without = [name for user, name in enumerate(user_names) if user not in seen]
    require(not without, f"{config.dir}: no image of {some(without)} can be read; repair or remove them")
    return UserImages(images[: len(paths)], torch.tensor(user_index), user_names, paths)


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of `rows` (N,), spread evenly from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def draw_flips(count: int, config: DataConfig, generator: torch.Generator) -> Tensor:
    """Whether each of `count` images is mirrored and upended, for `UserImages.batch`: (2, count) bool."""
    asked_for = torch.tensor([[config.horizontal_flip], [config.vertical_flip]])
    return (torch.rand(2, count, generator=generator) < 0.5) & asked_for
