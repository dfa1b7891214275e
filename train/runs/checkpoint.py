"""Checkpoints: folders that are whole and true, or not used.

A checkpoint is written into a temporary folder, synced to the disk and renamed; `checksum.json` holds the
SHA-256 of its files. A process may be killed at any moment: the checkpoint before it stays.

    step_00001000_best/   of the best validation so far, kept whatever its age
    step_00003000/
    step_00004000/

While the newest is the best, the best before it stays too, since the newest may turn out to be damaged.
"""

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from train.base.errors import UserError
from train.base.files import load_tensors, read_json, write_json

STATE = "state.pt"
NAME, BEST, DAMAGED = "step_" + "[0-9]" * 8, "_best", "damaged_"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: dict


def save_checkpoint(folder: Path, step: int, state: dict, keep: int, best: bool = False) -> Path:
    """Write `folder/step_<step>`, then remove all checkpoints but the last `keep` and the best one.

    UserError where the disk is full; the checkpoints before it are then as they were.
    """
    name = f"step_{step:08d}"
    target, temporary = folder / (name + BEST * best), folder / f".{name}.tmp"
    for leftover in [*folder.glob(f".{NAME}.tmp"), *folder.glob(DAMAGED + NAME + "*")]:  # of kills, and set aside
        shutil.rmtree(leftover)
    try:
        _write(temporary, {"step": step, "state": state})
        os.replace(temporary, target)
        _sync_folder(folder)
    except (OSError, RuntimeError, UserError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot be saved ({_reason(error)}); {last_good(folder)}") from error
    _remove_old(folder, keep)
    return target


def _write(folder: Path, content: dict) -> None:
    folder.mkdir(parents=True)
    with open(folder / STATE, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    write_json(folder / "checksum.json", {STATE: _sha256(folder / STATE)})
    _sync_folder(folder)


def _reason(error: Exception) -> str:
    """Why a save failed. torch.save turns a full disk into a RuntimeError of its own, within which it is found."""
    cause = error.__context__ if isinstance(error, RuntimeError) else error
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    if isinstance(cause, UserError):
        return str(cause)
    raise error


def _remove_old(folder: Path, keep: int) -> None:
    """Leave the last `keep` checkpoints, and the best of those before the newest: it is the best, or was until now."""
    checkpoints = list_checkpoints(folder)
    best = [path for path in checkpoints[:-1] if path.name.endswith(BEST)][-1:]
    for path in checkpoints[:-keep]:
        if path not in best:
            shutil.rmtree(path)
    for path in checkpoints[-keep:-1]:
        if path.name.endswith(BEST) and path not in best:
            path.rename(path.with_name(path.name.removesuffix(BEST)))


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted([*folder.glob(NAME), *folder.glob(NAME + BEST)])


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over.

    None where there is no checkpoint. UserError where there are some but none is whole: to start from the
    beginning would overwrite what could perhaps be rescued.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            _require_whole(path)
            loaded = load_tensors(path / STATE)
            if not isinstance(loaded.get("step"), int) or not isinstance(loaded.get("state"), dict):
                raise UserError(f"{path / STATE}: is not a checkpoint of a run")
            return Checkpoint(path, loaded["step"], loaded["state"])
        except (UserError, OSError) as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
    if checkpoints:
        raise UserError(f"{folder}: no checkpoint in it is whole; remove it to start from the beginning")
    return None


def set_aside_later(folder: Path, step: int) -> None:
    """Call damaged what `load_latest` passed over on its way to this step: it can be looked at until the next save.

    It no longer counts as a checkpoint that is kept, nor as the best.
    """
    for path in list_checkpoints(folder):
        if int(path.name[5:13]) > step:
            path.rename(path.with_name(DAMAGED + path.name))


def last_good(folder: Path) -> str:
    """In words, for a run that ends before its time."""
    for path in reversed(list_checkpoints(folder)):
        try:
            _require_whole(path)
            return f"the last good checkpoint is {path}"
        except (UserError, OSError):
            continue
    return f"there is no checkpoint in {folder} yet"


def _require_whole(path: Path) -> None:
    if read_json(path / "checksum.json").get(STATE) != _sha256(path / STATE):
        raise UserError(f"{path / STATE}: does not have the checksum that it was saved with")


class Unchanged:
    """What a run stands on and does not change, such as its images: to go on with others is refused."""

    def __init__(self, **hashes: str):
        self.hashes = hashes

    def state_dict(self) -> dict[str, str]:
        return self.hashes

    def load_state_dict(self, saved: dict[str, str]) -> None:
        for what, value in self.hashes.items():
            if saved[what] != value:
                raise UserError(f"the {what} is not what this run began with; use that, or another output_dir")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
