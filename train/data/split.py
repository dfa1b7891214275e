"""Which images train and which validate: made once, saved, and shared by VAE, UNet and evaluation.

Whole recordings go to one side or the other: overlapping windows of one recording on both sides leak, and
inflate a classifier's accuracy by 10 to 16 points. Which file belongs to which recording is read off its name
by `DataConfig.pattern`; without one, each file counts as a recording.
"""

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.base.errors import UserError
from train.base.files import read_json, write_json
from train.data.dataset import DataConfig, UserImages

SETTINGS = ("recording_pattern", "validation_fraction", "seed")  # what a split depends on beside the files


@dataclass(frozen=True, eq=False)
class Split:
    """Two disjoint sets of rows of a `UserImages`, together all of it."""

    train: Tensor  # int64, ascending
    validation: Tensor  # int64, ascending


def make_split(data: UserImages, config: DataConfig) -> Split:
    """A share of each user's recordings, at least one and not all, validates; a user's only one trains.

    The recordings with the smallest hashes are taken, so the order of files does not matter, and a recording
    more or less moves at most a few others. UserError where nothing could validate.
    """
    users = [data.user_names[user] for user in data.user_index.tolist()]
    found = [recording_of(path, config.pattern) for path in data.paths]
    keys = list(zip(users, found, strict=True))
    recordings: dict[str, set[str]] = defaultdict(set)
    for user, recording in keys:
        recordings[user].add(recording)
    validation: set[tuple[str, str]] = set()
    for user, own in recordings.items():
        ranked = sorted(own, key=lambda recording: _hash(config.seed, user, recording))
        count = min(max(round(config.validation_fraction * len(own)), 1), len(own) - 1)
        validation.update((user, recording) for recording in ranked[:count])
    if not validation:
        raise UserError(
            f"{config.dir}: every user has a single recording, so none is left to validate with; add some, "
            "or change data.recording_pattern"
        )
    single = [user for user, own in recordings.items() if len(own) == 1]
    if single:
        print(f"{config.dir}: one recording only, hence no validation: {', '.join(single)}", file=sys.stderr)
    held_out = torch.tensor([key in validation for key in keys])
    return Split(train=(~held_out).nonzero().flatten(), validation=held_out.nonzero().flatten())


def recording_of(path: str, pattern: str | None) -> str:
    """The recording that the file's name gives: group 1 of the pattern, or its whole match; else the name."""
    name = Path(path).name
    if pattern is None:
        return name
    match = re.search(pattern, name)
    recording = match and match[1 if match.re.groups else 0]
    if not recording:
        raise UserError(f"{path}: data.recording_pattern {pattern!r} finds no recording in this file's name")
    return recording


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of `rows` (N,), spread evenly from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def _hash(*parts: int | str) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def save_split(path: Path, split: Split, data: UserImages, config: DataConfig) -> None:
    """Write the two lists of files, and the settings that they came from, as JSON."""
    lists = {"train": split.train.tolist(), "validation": split.validation.tolist()}
    files = {side: [data.paths[row] for row in rows] for side, rows in lists.items()}
    write_json(path, {"settings": {key: getattr(config, key) for key in SETTINGS}, **files})


def load_split(path: Path, data: UserImages, config: DataConfig) -> Split:
    """A saved split, as rows of `data`. UserError unless it has the same settings and exactly these files."""
    saved = read_json(path)
    try:
        settings = dict(saved["settings"])
        train, validation = list(map(str, saved["train"])), list(map(str, saved["validation"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is not a saved split; delete it to have it made again") from None
    again = "or train everything that shares this split again"
    for key in SETTINGS:
        old, new = settings.get(key), getattr(config, key)
        if old != new:
            raise UserError(f"{path}: was made with data.{key} {old!r}, not {new!r}; set it so, {again}")
    rows = {name: row for row, name in enumerate(data.paths)}
    listed, present = Counter(train + validation), Counter(data.paths)
    differ = sorted((listed - present) + (present - listed))
    if differ:
        raise UserError(
            f"{path}: does not fit the images in {config.dir}: {len(differ)} were added, removed or listed "
            f"twice, the first is {differ[0]}; undo that, {again}"
        )
    if not train or not validation:
        raise UserError(f"{path}: one side of the split is empty; delete it to make it again")
    return Split(*(torch.tensor(sorted(rows[name] for name in side)) for side in (train, validation)))


def fingerprint(data: UserImages, split: Split) -> str:
    """A hash of users, file names, pixels and split: the key of a cache of what is computed from them."""
    users, shape, held_out = data.user_index.tolist(), data.images.shape, split.validation.tolist()
    digest = hashlib.sha256(json.dumps([data.user_names, users, data.paths, shape, held_out]).encode())
    digest.update(data.images.contiguous().numpy())
    return digest.hexdigest()
