"""Which images train, which validate and which are held out: made once, saved, shared by VAE, UNet and judge.

An LDM whose images are not all those of its VAE, or of the LDM that it begins from, takes over the side of each file
that they know. A split also knows files that are not here any more: where they come back, they are not new.

Whole recordings are held out: overlapping windows of one recording on both sides are a leak, which inflates a
classifier's accuracy by 10 to 16 points. What is held out is for the judge alone; what training itself watches, to
choose the best checkpoint, is a part of the recordings that train. `DataConfig.pattern` finds a file's recording in
its name; without a pattern, each file counts as a recording.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from train.base.errors import UserError, require
from train.base.files import as_written, read_json, tensors_hash, write_json
from train.base.names import composed
from train.base.units import counted
from train.config.sections import DataConfig
from train.data.dataset import UserImages
from train.data.folders import natural_key
from train.data.store import digest

# The settings on which a split depends.
DECIDED_BY = ("recording_pattern", "recordings_per_user", "validation_fraction", "seed")
AGAIN = "or train everything that shares this split again"
SIDES = ("train", "validation", "held_out")


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of rows of a `UserImages`, together all of it; int64, ascending. And what is not in it."""

    train: Tensor  # what weights and scales are fitted to
    validation: Tensor  # of the same recordings: what training watches
    held_out: Tensor  # whole recordings, which nothing is fitted to, chosen by or shown from before the judge
    gone: Mapping[str, str] = field(default_factory=dict)  # path -> side, of files that only earlier models knew

    @property
    def training(self) -> Tensor:
        """All images of the training recordings, which are those of `train` and `validation`; ascending."""
        return torch.cat([self.train, self.validation]).sort().values

    def __str__(self) -> str:
        train, validation, held_out = (len(getattr(self, side)) for side in SIDES)
        return (f"{counted(train, 'image')} to train with, {validation:,} to validate with, {held_out:,} of other "
                "recordings held out")


def make_split(
    data: UserImages, config: DataConfig, known: Mapping[str, str] = MappingProxyType({}), goes_on: bool = False
) -> Split:
    """Hold whole recordings of each user out, and validate with a share of the images of the others.

    Of a user's n recordings min(recordings_per_user, n - 1) train; without that number, all but a share
    `validation_fraction`, which is at least one. They are those with the largest hashes, so the order of files does
    not matter, one recording more or less moves at most one other, and where more train, the same ones still do.

    The same share of the user's training images, at least one and not all, validates: the last ones of the recording
    with the largest hash, and where it has too few, of the one before it, so that neighbours stay together.

    A user's only recording trains, and so does a user's only training image. `known` files, by path, keep their side,
    whether they are still here or not, and new files of their recordings go with them; new recordings make up what is
    lacking of these numbers. Of a user of whom only one of them is left, some train and some validate, but where a
    model that has learned from them `goes_on`: what trained never validates then.

    UserError where nothing would be held out, nothing would validate, or nothing of a user may train.
    """
    own: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))  # user -> recording -> rows
    for row, (user, path) in enumerate(zip(data.user_index.tolist(), data.paths, strict=True)):
        own[user][recording_of(path, config.pattern)].append(row)
    ordered = sorted(known.items(), key=lambda item: SIDES.index(item[1]))  # "held_out" comes last, and prevails
    recordings_before = {(path.partition("/")[0], recording_of(path, config.pattern)): side for path, side in ordered}
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for user, recordings in own.items():
        name = data.user_names[user]
        ranked = sorted(recordings, key=lambda key, name=name: tensors_hash([], [config.seed, name, key]))
        rows = [sorted(recordings[key], key=lambda row: natural_key(data.paths[row])) for key in ranked]
        before = [[known.get(data.paths[row]) for row in its] for its in rows]
        out = _held_out([recordings_before.get((name, key)) for key in ranked], config)
        sides["held_out"] += chain(*(its for its, is_out in zip(rows, out, strict=True) if is_out))
        training = list(chain(*(its for its, is_out in zip(rows, out, strict=True) if not is_out)))
        require(training, f"{config.dir}: all that there is of {name} was held out when the VAE was trained, and stays "
                "so; add other recordings, or train the VAE again")
        watched = _validate([_like_neighbours(its) for its, is_out in zip(before, out, strict=True) if not is_out],
                            config.validation_fraction, goes_on)  # fmt: skip
        for row, validates in zip(training, watched, strict=True):
            sides["validation" if validates else "train"].append(row)
    single = [data.user_names[user] for user, recordings in own.items() if len(recordings) == 1]
    require(sides["held_out"], f"{config.dir}: every user has a single recording, so none is left to hold out; add "
            "some, or change data.recording_pattern")
    second = "a second image" + goes_on * ", one that has not trained yet,"
    require(sides["validation"], f"{config.dir}: no user has {second} in the recordings that train, so none is left to "
            "validate with; add images, or raise data.recordings_per_user")
    if single:
        print(f"{config.dir}: one recording only, hence nothing of it is held out: {', '.join(single)}",
              file=sys.stderr)
    return Split(**{side: torch.tensor(sorted(rows)) for side, rows in sides.items()})


def _held_out(before: list[str | None], config: DataConfig) -> list[bool]:
    """Which recordings of a user are held out, from the sides that they had before: None, a new one."""
    count = len(before)
    wanted = _share(config.validation_fraction, count)
    if config.recordings_per_user is not None:
        wanted = max(count - config.recordings_per_user, min(1, count - 1))
    new = [at for at, side in enumerate(before) if side is None]
    chosen = set(new[: max(wanted - before.count("held_out"), 0)])
    return [side == "held_out" or at in chosen for at, side in enumerate(before)]


def _like_neighbours(before: list[str | None]) -> list[str | None]:
    """The sides of a recording's files, in their order: a new one has that of the next before it, else behind it."""
    filled, last = [], next(filter(None, before), None)
    for side in before:
        last = side or last
        filled.append(last)
    return filled


def _validate(before: list[list[str | None]], fraction: float, goes_on: bool) -> list[bool]:
    """Which of a user's training images validate, from the sides in `before` of each of the recordings."""
    sides = list(chain(*before))
    alone = ({"validation"},) if goes_on else ({"train"}, {"validation"})
    if set(sides) in alone:  # of those that are left: both are needed
        sides = [None] * len(sides)
    lacking = _share(fraction, len(sides)) - sides.count("validation")
    new = [at for at, side in enumerate(sides) if side is None]
    chosen = set(new[len(new) - max(lacking, 0) :])
    return [side == "validation" or at in chosen for at, side in enumerate(sides)]


def _share(fraction: float, count: int) -> int:
    """That share of `count` things, at least one and not all; of a single thing, none."""
    return min(max(round(fraction * count), 1), count - 1)


def recording_of(path: str, pattern: str | None) -> str:
    """The recording of a file: group 1 of the pattern in its name, or the match; without a pattern, the name."""
    match = re.search(composed(pattern or "(?s).+"), composed(Path(path).name))
    recording = match and match[1 if match.re.groups else 0]
    require(recording, f"{path}: data.recording_pattern {pattern!r} finds no recording in this file's name")
    return recording


def numbers_of_recordings(data: UserImages, rows: Iterable[int], config: DataConfig) -> Tensor:
    """A number for the recording of each of these rows, the same within a recording of a user: int64."""
    seen: dict[tuple[int, str], int] = {}
    users = data.user_index.tolist()
    keys = ((users[row], recording_of(data.paths[row], config.pattern)) for row in rows)
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys])


def save_split(path: Path, split: Split, data: UserImages, config: DataConfig) -> None:
    """Write the three lists of files, the settings on which they depend, and the files that are gone, as JSON."""
    files = {side: [data.paths[row] for row in getattr(split, side).tolist()] for side in SIDES}
    settings = {key: getattr(config, key) for key in DECIDED_BY}
    write_json(path, {"settings": settings, **files, "gone": split.gone})


def load_split(path: Path, data: UserImages, config: DataConfig) -> Split:
    """A saved split, as rows of `data`. UserError unless it has the same settings and exactly these files."""
    settings, sides, gone = read_split(path)
    require_settings(path, settings, config)
    rows = {name: row for row, name in enumerate(data.paths)}
    found = {side: torch.tensor([rows.get(name, -1) for name in names]) for side, names in sides.items()}
    everything = torch.cat([*found.values()]).sort().values
    if not torch.equal(everything, torch.arange(len(data))):
        listed, present = Counter(chain(*sides.values())), Counter(data.paths)
        differ = sorted((listed - present) + (present - listed))
        raise UserError(f"{path}: does not fit the images in {config.dir}: {len(differ)} were added, removed or "
                        f"listed twice, the first is {min(differ, default='')}; undo that, or train in another "
                        "output_dir, where an LDM can begin from this one with --init_from")  # fmt: skip
    return Split(**{side: its.sort().values for side, its in found.items()}, gone=gone)


def adapt_split(paths: Sequence[Path], data: UserImages, config: DataConfig, goes_on: bool = False) -> Split:
    """A split of `data` that agrees with saved ones about all files that both have; says where it is another.

    What one of them holds out stays held out; else the last that knows a file prevails. `goes_on`: a model that has
    learned from the training images goes on.

    UserError where both have files, and the saved one has other settings; and where one holds out what has trained in
    another.
    """
    here, saved, gone_before = set(data.paths), {}, {}
    for path in paths:
        settings, sides, gone = read_split(path)
        gone_before |= gone
        its = gone | {name: side for side in SIDES for name in sides[side]}
        if its.keys() & here:
            require_settings(path, settings, config)
        saved[path] = {} if differing(settings, config) else its  # of other data, whose recordings have other names
    known = {name: side for its in saved.values() for name, side in its.items()}
    known |= {name: side for its in saved.values() for name, side in its.items() if side == "held_out"}
    if known.keys() == here and not gone_before and all(its == known for its in saved.values()):
        return load_split(paths[-1], data, config)
    split = make_split(data, config, known, goes_on)
    out, names = {data.paths[row] for row in split.held_out.tolist()}, " and ".join(map(str, paths))
    learned = sorted(name for its in saved.values() for name in out if its.get(name) == "train")
    require(not learned, f"{names}: do not go together: one has trained on {min(learned, default='')}, and one holds "
            "its recording out; train everything that shares these splits again")
    gone = {name: side for name, side in sorted(known.items()) if name not in here}
    both = len(known) - len(gone)
    print(f"{names}: {'is' if len(paths) == 1 else 'are'} of other images; of the {len(here)} in {config.dir} {both} "
          f"keep their side and {len(here) - both} are split by the same rule ({len(gone)} of its own are gone)",
          file=sys.stderr)  # fmt: skip
    return replace(split, gone=gone)


def require_settings(path: Path, settings: dict, config: DataConfig) -> None:
    for key in differing(settings, config):
        old, new = settings.get(key), getattr(config, key)
        raise UserError(f"{path}: was made with data.{key} {old!r}, not {new!r}; set it so, {AGAIN}")


def differing(settings: dict, config: DataConfig) -> list[str]:
    """The settings of a saved split that are others now."""
    both = {key: (settings.get(key), getattr(config, key)) for key in DECIDED_BY}
    return [key for key, (old, new) in both.items() if old != new and composed(str(old)) != composed(str(new))]


def read_split(path: Path) -> tuple[dict, dict[str, list[str]], dict[str, str]]:
    """The settings of a saved split, the files of each side, and the side of each file that is gone."""
    saved = read_json(path)
    with as_written(path, "delete it to have the split made again"):
        settings = dict(saved["settings"])
        there = [side for side in SIDES if side != "held_out" or side in saved]
        sides = {side: [composed(str(name)) for name in saved[side]] for side in there}
        gone = {composed(name): SIDES[SIDES.index(side)] for name, side in dict(saved.get("gone", {})).items()}
    require("held_out" in sides, f"{path}: was made by an earlier version, which held no recordings out of training; "
            "train VAE and LDM again, in another output_dir")
    require(all(sides.values()), f"{path}: one side of the split is empty; delete it to make it again")
    return settings, sides, gone


def training_images(path: Path) -> Counter[str]:
    """How many images each user has in the training recordings of a saved split."""
    _, sides, _ = read_split(path)
    return Counter(name.partition("/")[0] for name in sides["train"] + sides["validation"])


def fingerprint(data: UserImages, split: Split) -> str:
    """A hash of users, file names, pixels and split."""
    users, sides = data.user_index.tolist(), [getattr(split, side).tolist() for side in SIDES]
    about = json.dumps([data.user_names, users, data.paths, list(data.images.shape), *sides])
    return digest(about.encode() + data.digests.tobytes()).hex()
