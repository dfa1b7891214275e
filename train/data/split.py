"""Which images train and which validate: made once, saved, and shared by VAE, UNet and evaluation.

Whole recordings go to one side or the other: overlapping windows of one recording on both sides are a leak, which
inflates a classifier's accuracy by 10 to 16 points. `DataConfig.pattern` finds a file's recording in its name;
without a pattern, each file counts as a recording.
"""

import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.base.errors import UserError, require
from train.base.files import read_json, tensors_hash, write_json
from train.config.sections import DataConfig
from train.data.dataset import UserImages

DECIDED_BY = ("recording_pattern", "validation_fraction", "seed")  # the settings on which a split depends


@dataclass(frozen=True, eq=False)
class Split:
    """Two disjoint sets of rows of a `UserImages`, together all of it."""

    train: Tensor  # int64, ascending
    validation: Tensor  # int64, ascending


def make_split(data: UserImages, config: DataConfig) -> Split:
    """A share of each user's recordings, at least one and not all, validates; a user's only one trains.

    The recordings with the smallest hashes validate, so the order of files does not matter, and one recording
    more or less moves at most a few others. UserError where none could validate.
    """
    users = [data.user_names[user] for user in data.user_index.tolist()]
    keys = [(user, recording_of(path, config.pattern)) for user, path in zip(users, data.paths, strict=True)]
    recordings: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for user, recording in keys:
        recordings[user].add((user, recording))
    validation: set[tuple[str, str]] = set()
    for own in recordings.values():
        ranked = sorted(own, key=lambda key: tensors_hash([], [config.seed, *key]))
        validation.update(ranked[: min(max(round(config.validation_fraction * len(own)), 1), len(own) - 1)])
    single = [user for user, own in recordings.items() if len(own) == 1]
    require(len(single) < len(recordings), f"{config.dir}: every user has a single recording, so none is left to "
            "validate with; add some, or change data.recording_pattern")
    if single:
        print(f"{config.dir}: one recording only, hence no validation: {', '.join(single)}", file=sys.stderr)
    held_out = torch.tensor([key in validation for key in keys])
    return Split(train=(~held_out).nonzero().flatten(), validation=held_out.nonzero().flatten())


def recording_of(path: str, pattern: str | None) -> str:
    """The recording of a file: group 1 of the pattern in its name, or the match; without a pattern, the name."""
    match = re.search(pattern or "(?s).+", Path(path).name)
    recording = match and match[1 if match.re.groups else 0]
    require(recording, f"{path}: data.recording_pattern {pattern!r} finds no recording in this file's name")
    return recording


def save_split(path: Path, split: Split, data: UserImages, config: DataConfig) -> None:
    """Write the two lists of files, and the settings on which they depend, as JSON."""
    lists = {"train": split.train.tolist(), "validation": split.validation.tolist()}
    files = {side: [data.paths[row] for row in rows] for side, rows in lists.items()}
    write_json(path, {"settings": {key: getattr(config, key) for key in DECIDED_BY}, **files})


def load_split(path: Path, data: UserImages, config: DataConfig) -> Split:
    """A saved split, as rows of `data`. UserError unless it has the same settings and exactly these files."""
    saved = read_json(path)
    try:
        settings = dict(saved["settings"])
        train, validation = list(map(str, saved["train"])), list(map(str, saved["validation"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is not a saved split; delete it to have it made again") from None
    again = "or train everything that shares this split again"
    for key in DECIDED_BY:
        old, new = settings.get(key), getattr(config, key)
        require(old == new, f"{path}: was made with data.{key} {old!r}, not {new!r}; set it so, {again}")
    listed, present = Counter(train + validation), Counter(data.paths)
    differ = sorted((listed - present) + (present - listed))
    require(not differ, f"{path}: does not fit the images in {config.dir}: {len(differ)} were added, removed or "
            f"listed twice, the first is {min(differ, default='')}; undo that, {again}")
    require(train and validation, f"{path}: one side of the split is empty; delete it to make it again")
    rows = {name: row for row, name in enumerate(data.paths)}
    return Split(*(torch.tensor(sorted(rows[name] for name in side)) for side in (train, validation)))


def fingerprint(data: UserImages, split: Split) -> str:
    """A hash of users, file names, pixels and split."""
    users, shape, held_out = data.user_index.tolist(), data.images.shape, split.validation.tolist()
    return tensors_hash([data.images], [data.user_names, users, data.paths, shape, held_out])
