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


def save_checkpoint(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Write `folder/step_<step>`, then remove all but the newest `keep` checkpoints."""
    target = folder / f"step_{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with open(temporary / STATE, "wb") as file:
        torch.save({"step": step, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    write_json(temporary / "checksum.json", {STATE: _sha256(temporary / STATE)})
    if target.exists():  # a damaged one, which `load_latest` passed over
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync_folder(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def load_latest(folder: Path) -> tuple[int, dict] | None:
    """Step and state of the newest checkpoint that is whole; damaged ones are named and passed over."""
    for path in reversed(list_checkpoints(folder)):
        try:
            if read_json(path / "checksum.json").get(STATE) != _sha256(path / STATE):
                raise UserError(f"{path / STATE}: does not have the checksum that it was saved with")
            loaded = load_tensors(path / STATE)
            return loaded["step"], loaded["state"]
        except (UserError, OSError) as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
    return None


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
