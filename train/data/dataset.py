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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.base.errors import CONTROL, UserError, one_line, require, some
from train.base.names import composed
from train.base.progress import progress
from train.base.units import GiB, counted
from train.config.sections import DataConfig
from train.data.images import SUFFIXES, read_image, to_float

LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # files that systems leave in any folder
NO_USERS = (  # and folders
    "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "@tmp", "lost+found", "recycler",
    "$recycle.bin", "system volume information", "found.000", "__pycache__",
)  # fmt: skip
OTHER = (*SUFFIXES, ".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".mat", ".npy", ".npz",
         ".pdf", ".pfm", ".psd", ".raw", ".svg", ".tga")  # fmt: skip
"""Of files that may well be somebody's pictures, whether they are read here or not."""
MAX_UNREADABLE = 0.05  # share of the files; if more cannot be read, it is probably the wrong data set


# ---- folders


def natural_key(name: str) -> tuple:
    """Sort key for natural order: `ID2` before `ID10`; case decides only between otherwise equal names."""
    name = composed(name)
    parts = re.split("([0-9]+)", name.casefold())  # text and digits in turn, so keys always compare
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


@dataclass(frozen=True)
class Scan:
    """What a data folder holds."""

    users: list[str]  # names, in natural order
    files: list[list[Path]]  # the images of each user, in natural order too
    unused: dict[str, list[str]]  # names of what is not used, by what it is

    @property
    def left_out(self) -> str:
        """What is not used, in words; "" where there is no such thing."""
        said = []
        for (thing, where), names in self.unused.items():
            kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in names).most_common()
            tally = some([f"{count:,} {kind}" for kind, count in kinds], 6) + ": " if thing == "file" else ""
            said += [f"{counted(len(names), thing)} {where} ({tally}{some(names)})"] if names else []
        return "; ".join(said)


def scan(folder: str | Path) -> Scan:
    """Find the users and their images in a folder.

    Hidden entries and what systems leave behind are ignored. A folder without any picture is no user. UserError where
    there is no such folder, no user, a user with pictures only where they are not looked for, or one name twice.
    """
    folder = Path(folder)
    require(os.path.isdir(folder), f"{folder}: no such folder; data.dir is what holds a folder of images per user")
    entries = _visible(folder)
    for entry in entries:  # otherwise a user would be missing without any notice
        lost = entry.is_symlink() and not os.path.exists(entry)
        require(not lost, f"{entry}: is a link to nowhere; repair or remove it")
    folders = [entry for entry in entries if os.path.isdir(entry)]
    within = {entry: [] if entry.name.casefold() in NO_USERS else _visible(entry) for entry in folders}
    files = {entry: own for entry, inner in within.items() if (own := [path for path in inner if _has_suffix(path)])}
    _require_writable_and_unlike(folder, files)
    others = [entry for entry in folders if entry not in files]
    elsewhere = [entry for entry in others if any(_has_suffix(path, OTHER) for path in _below(within[entry]))]
    deeper = elsewhere and any(os.path.isdir(entry) for entry in within[elsewhere[0]])
    instead = f"; if the users are in there, give {elsewhere[0]} as data.dir" if deeper else ""
    require(not elsewhere, f"{folder}: no image directly in the folder of {some([user.name for user in elsewhere])}; "
            f"put images there ({' '.join(SUFFIXES)}), remove it, or give a folder of links to the others{instead}")
    require(files, f"{folder}: there is no user in it; put each user's images into a folder named after the user, "
            f"as in {folder / 'ID1' / 'image.png'}")
    rest = [path for user in files for path in within[user] if not _has_suffix(path)]
    loose, inner = ([path for path in rest if os.path.isdir(path) == is_folder] for is_folder in (False, True))
    unused = {
        ("file", "of other formats"): loose,
        ("file", "in folders within the users'"): _below(inner),
        ("file", "beside the users' folders"): [entry for entry in entries if entry not in within],
        ("folder", "without images"): others,
    }
    names = {what: [one_line(path.relative_to(folder).as_posix()) for path in paths] for what, paths in unused.items()}
    return Scan([composed(user.name) for user in files], list(files.values()), names)


def _require_writable_and_unlike(folder: Path, files: dict[Path, list[Path]]) -> None:
    """UserError where a name cannot be written into a text file, or stands for two users or two images of a user."""
    for path in [*files, *itertools.chain(*files.values())]:
        writable = not CONTROL.search(path.name)
        require(writable, f"{folder}: rename {path.name!r}; such a name cannot be written into a text file")
    seen: dict[str, str] = {}
    for user in files:  # the output folders of two users would be the same on Windows and macOS
        same = seen.setdefault(composed(user.name).casefold(), user.name)
        require(same == user.name, f"{folder}: users {same!r} and {user.name!r} differ in case only, or in how accents "
                "are stored; rename one")
    for user, own in files.items():
        twice = [name for name, count in Counter(composed(path.name) for path in own).items() if count > 1]
        require(not twice, f"{user}: has {some(twice)} twice, which differ in how accents are stored only; rename one")


def _has_suffix(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    return path.suffix.lower() in suffixes


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder in natural order, but for hidden ones and what systems leave behind."""
    try:
        entries = [entry for entry in folder.iterdir() if not _is_litter(entry.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _below(entries: list[Path]) -> list[Path]:
    """The files among the entries, and those in the folders among them, at any depth; links are not followed."""
    found = []
    for entry in (entry for entry in entries if entry.name.casefold() not in NO_USERS):
        found += [entry] if not os.path.isdir(entry) else []
        for place, folders, names in os.walk(entry):
            folders[:] = sorted(name for name in folders if not _is_litter(name) and name.casefold() not in NO_USERS)
            found += [Path(place, name) for name in sorted(names, key=natural_key) if not _is_litter(name)]
    return found


# ---- images


@dataclass(frozen=True, eq=False)
class UserImages:
    """The decoded data set. Row i of `images` belongs to user `user_names[user_index[i]]`."""

    images: Tensor  # uint8 (N, C, H, W)
    user_index: Tensor  # int64 (N,)
    user_names: list[str]  # in natural order; saved with every model
    paths: list[str]  # of the images, relative to the data folder, with `/`; names in NFC, whatever the folder has

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
    """Decode every image under `config.dir`, and say what in the folder is not used.

    Files that cannot be read are named, counted and left out. UserError where they are more than 5% of all files or
    all files of a user.
    """
    found = scan(config.dir)
    if found.left_out:
        print(f"{config.dir}: not used: {found.left_out}", file=sys.stderr)
    return decode(found, config)


def decode(found: Scan, config: DataConfig) -> UserImages:
    """The same of a folder that has been scanned, without a word about what is not used."""
    todo = [(user, path) for user, own in enumerate(found.files) for path in own]
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
            paths.append(composed(path.relative_to(config.dir).as_posix()))
        except UserError as error:
            unreadable.append(str(error))
    part = f"{len(unreadable)} of {len(todo)} images"
    require(len(unreadable) <= MAX_UNREADABLE * len(todo), f"{config.dir}: {part} cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}; repair or remove them: {some(unreadable)}")
    if unreadable:
        print("\n  ".join([f"{config.dir}: left out {part}", *unreadable]), file=sys.stderr)
    seen = set(user_index)
    without = [name for user, name in enumerate(found.users) if user not in seen]
    require(not without, f"{config.dir}: no image of {some(without)} can be read; repair or remove them")
    return UserImages(images[: len(paths)], torch.tensor(user_index), found.users, paths)


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of `rows` (N,), spread evenly from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def draw_flips(count: int, config: DataConfig, generator: torch.Generator) -> Tensor:
    """Whether each of `count` images is mirrored and upended, for `UserImages.batch`: (2, count) bool."""
    asked_for = torch.tensor([[config.horizontal_flip], [config.vertical_flip]])
    return (torch.rand(2, count, generator=generator) < 0.5) & asked_for
