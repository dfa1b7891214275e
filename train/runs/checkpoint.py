"""Checkpoints: folders that are used only if they are complete and undamaged.

A checkpoint is written into a temporary folder, synced to the disk and renamed; `checksum.json` holds the SHA-256 of
its file. Whenever a process is killed, the checkpoint before stays. `step_00001000_best` is the best validation so far,
kept whatever its age; while it is the newest, so is the best before it, since the newest may turn out to be damaged.
"""

import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from train.base.errors import UserError, out_of_memory, require
from train.base.files import LOAD_ERRORS, file_hash, load_tensors, read_json, refusal, replacing, write_json
from train.base.folders import replacing_folder
from train.base.units import in_units
from train.config.sections import TrainingConfig

STATE = "state.pt"
PATTERN, BEST, DAMAGED = "step_" + "[0-9]" * 8, "_best", "damaged_"


class Stateful(Protocol):
    """A part of a checkpoint. All processes call `state_dict` together; that of the first is saved."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: dict


def save_checkpoint(folder: Path, step: int, state: dict, keep: int, best: bool = False) -> Path:
    """Write `folder/step_<step>`, then remove all checkpoints but the last `keep` and the best one before the newest.

    UserError where the disk is full; the earlier checkpoints are then unchanged.
    """
    name = f"step_{step:08d}"
    target, twin = folder / (name + BEST * best), folder / (name + BEST * (not best))
    # What killed processes have left, and what is set aside as damaged.
    for leftover in [*folder.glob(f".{PATTERN}*"), *folder.glob(f"{DAMAGED}{PATTERN}*")]:
        shutil.rmtree(leftover)
    try:
        with replacing_folder(target) as temporary:
            _write(temporary, {"step": step, "state": state})
    except UserError as error:
        raise UserError(f"{target}: cannot be saved ({refusal(error) or error}); {last_good(folder)}") from error
    if twin.exists():  # the same step, before it was found to be the best
        shutil.rmtree(twin)
    checkpoints = list_checkpoints(folder)
    earlier_best = [path for path in checkpoints[:-1] if path.name.endswith(BEST)]
    for path in checkpoints[:-keep]:
        if path not in earlier_best[-1:]:
            shutil.rmtree(path)
    for path in earlier_best[:-1]:
        if path in checkpoints[-keep:]:
            path.rename(path.with_name(path.name.removesuffix(BEST)))
    return target


def _write(folder: Path, content: dict) -> None:
    with replacing(folder / STATE) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
    write_json(folder / "checksum.json", {STATE: file_hash(folder / STATE)})


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted([*folder.glob(PATTERN), *folder.glob(PATTERN + BEST)])


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, None where there is none at all; damaged ones are reported and skipped.

    UserError where all are damaged: to start from the beginning would overwrite what could perhaps be rescued.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            return read_checkpoint(path)
        except (UserError, OSError) as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
    require(not checkpoints, f"{folder}: no checkpoint in it is whole; remove it to start from the beginning")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """UserError where it is damaged."""
    _require_whole(path)
    loaded = load_tensors(path / STATE)
    known = isinstance(loaded.get("step"), int) and isinstance(loaded.get("state"), dict)
    require(known, f"{path / STATE}: is not a checkpoint of a run")
    return Checkpoint(path, loaded["step"], loaded["state"])


def set_aside_later(folder: Path, step: int) -> None:
    """Rename the checkpoints after this step, which `load_latest` skipped, as damaged; the next save removes them.

    They no longer count among those that are kept, nor as the best.
    """
    for path in list_checkpoints(folder):
        if int(path.name[5:13]) > step:
            path.rename(path.with_name(DAMAGED + path.name))


def last_good(folder: Path) -> str:
    """A clause for errors that end a run: which checkpoint is the last undamaged one."""
    for path in reversed(list_checkpoints(folder)):
        with suppress(UserError, OSError):
            _require_whole(path)
            return f"the last good checkpoint is {path}"
    return f"there is no checkpoint in {folder} yet"


def _require_whole(path: Path) -> None:
    same = read_json(path / "checksum.json").get(STATE) == file_hash(path / STATE)
    require(same, f"{path / STATE}: does not have the checksum that it was saved with")


def load_run(folder: Path, total_steps: int, length_key: str, state: dict[str, Stateful]) -> int:
    """Load the newest undamaged checkpoint into `state`; returns its step, or 0 where there is none.

    Nothing is written. UserError where the checkpoint is of another run, or after more than `total_steps` steps, which
    the config's `length_key` asks for.
    """
    found = load_latest(folder)
    if found is None:
        return 0
    taken, names = found.step, ", ".join(found.state)
    require(taken <= total_steps, f"{found.path}: the run has already taken {taken} steps, more than the {total_steps} "
            f"asked for; raise {length_key}")
    require(found.state.keys() == state.keys(),
            f"{found.path}: holds {names}, this run {', '.join(state)}; use another output_dir")
    for name, part in state.items():
        try:
            part.load_state_dict(found.state[name])
        except UserError as error:
            raise UserError(f"{found.path}: {error}") from None
        except LOAD_ERRORS as error:
            if out_of_memory(error):
                raise
            raise UserError(f"{found.path}: the {name} in it is of another model; use another output_dir") from error
    return found.step


class Unchanged:
    """Hashes of the run's inputs; resuming with others is an error, which says what to give `instead`."""

    def __init__(self, hashes: dict[str, str], instead: dict[str, str]):
        self.hashes, self.instead = hashes, instead

    def state_dict(self) -> dict[str, str]:
        return self.hashes

    def load_state_dict(self, saved: dict[str, str]) -> None:
        for what, value in self.hashes.items():
            of_before = (len(saved[what]), len(value)) == (64, 32)  # hashed all pixels anew, which tells nothing now
            same = saved[what] == value or of_before
            that = self.instead.get(what, "use that")
            require(same, f"the {what} is not what this run began with; {that}, or use another output_dir")


def require_disk(training: TrainingConfig, model: nn.Module, without_average: Iterable[nn.Parameter] = ()) -> str:
    """The disk space that all checkpoints of a run need, in words: the last ones, the best and one being written.

    Each holds weights, average and two moments in float32; an adversary's parameters are `without_average`. The final
    model is one more average. UserError where that much, less what the run has there already, is not free.
    """
    weights, others = (sum(p.numel() * 4 for p in parameters) for parameters in (model.parameters(), without_average))
    checkpoints = training.keep_checkpoints + 2
    folder = Path(training.output_dir).absolute()
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*/*"))
    needed = max((4 * weights + 3 * others) * checkpoints + weights - there, 0)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = f"{checkpoints} checkpoints and the model need {in_units(needed)}, {in_units(free)} are free"
    require(free >= needed, f"{folder}: {said}; lower keep_checkpoints, or give another output_dir")
    return f"checkpoints need {in_units(needed)} of {in_units(free)} free"
