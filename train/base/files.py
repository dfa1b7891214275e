"""Files that are whole or absent: every write goes to a temporary file, to the disk, then to its name."""

import hashlib
import json
import os
import pickle
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from train.base.errors import UserError

# What torch.load raises for a file that is cut off, altered or something else altogether.
DAMAGED = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    OSError, struct.error,
)  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends without an error.

    UserError where the disk is full or the folder cannot be written to; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # always the same: what a killed process has left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        model = path.parent / "final_model"  # within a run's folder
        hint = f" (did you mean {model}?)" if (model / path.name).is_file() else ""
        raise UserError(f"{path}: there is no such file{hint}") from None
    except NotADirectoryError:
        raise UserError(f"{path.parent}: is a file; give the folder of a saved model") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def load_tensors(path: Path) -> dict:
    """What `torch.save` wrote, tensors and plain containers only: code that a file carries is never run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on old kinds of storage in a damaged file
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: damaged, or with Python objects other than tensors, which could run code"
        ) from None
    except DAMAGED as error:
        raise UserError(f"{path}: truncated, or not a file of tensors; save or copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a dictionary of tensors, not {type(value).__name__}")
    return value


def tensors_hash(tensors: Iterable[Tensor], beside: str = "") -> str:
    """SHA-256 of the bytes of tensors, one after the other, and of what is to be known `beside` them."""
    digest = hashlib.sha256(beside.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
