"""Checkpoints: folders that are whole and true, or not used.

A checkpoint is written into a temporary folder, synced to the disk and renamed; `checksum.json` holds the
SHA-256 of its files. A process may be killed at any moment: the checkpoint before it stays.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import torch

from train.errors import UserError
from train.files import load_tensors, read_json, write_json

STATE = "state.pt"
PATTERN = "step_" + "[0-9]" * 8


def save_checkpoint(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Write `folder/step_<step>`, then remove all checkpoints but this one and the `keep` - 1 before it."""
    target = folder / f"step_{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    for leftover in folder.glob(f".{PATTERN}.tmp"):  # of a process that was killed in here
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    with open(temporary / STATE, "wb") as file:
        torch.save({"step": step, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    write_json(temporary / "checksum.json", {STATE: _sha256(temporary / STATE)})
    _sync_folder(temporary)
    if target.exists():  # a damaged one, which `load_latest` passed over
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync_folder(folder)
    checkpoints = list_checkpoints(folder)
    kept = [path for path in checkpoints if path <= target][-keep:]
    for path in checkpoints:
        if path not in kept:  # old, or damaged: this run would not have come to `step` from a newer one
            shutil.rmtree(path)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(PATTERN))


def load_latest(folder: Path) -> tuple[int, dict] | None:
    """Step and state of the newest checkpoint that is whole; damaged ones are named and passed over.

    None where there is no checkpoint. UserError where there are some but none is whole: to start from the
    beginning would overwrite what could perhaps be rescued.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            if read_json(path / "checksum.json").get(STATE) != _sha256(path / STATE):
                raise UserError(f"{path / STATE}: does not have the checksum that it was saved with")
            loaded = load_tensors(path / STATE)
            if not isinstance(loaded.get("step"), int) or not isinstance(loaded.get("state"), dict):
                raise UserError(f"{path / STATE}: is not a checkpoint of a run")
            return loaded["step"], loaded["state"]
        except (UserError, OSError) as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
    if checkpoints:
        raise UserError(f"{folder}: no checkpoint in it is whole; remove it to start from the beginning")
    return None


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
