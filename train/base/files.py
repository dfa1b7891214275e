"""Files that are either complete or absent, JSON, files of tensors, and hashes."""

import csv
import errno
import hashlib
import json
import os
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from train.base.errors import UserError, require
from train.base.first_bytes import disguise, not_numbers, open_file
from train.base.units import in_units

T = TypeVar("T")

# What torch.load and load_state_dict raise for a file that is cut off, altered or of another kind.
LOAD_ERRORS = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    OSError, struct.error, zipfile.BadZipFile,
)  # fmt: skip

# What code raises that takes values out of a file of ours that somebody has altered.
ALTERED = (LookupError, TypeError, ValueError, AttributeError, csv.Error)

# What file systems say that cannot sync a folder, such as some on a network; the renames in it are theirs to keep.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around all that writes to `path`: UserError where that fails, in whichever library it does."""
    try:
        yield
    except Exception as error:  # libraries have kinds of their own, and what is none of the disk's is raised again
        reason = refusal(error)
        if isinstance(error, UserError) or not reason:
            raise
        raise UserError(f"{path}: cannot be written ({reason})") from error


def refusal(error: BaseException) -> str:
    """Why something could not be written: what the system said, or else the library; "" for a bug of ours."""
    in_rust = re.search(r"([^:]+) \(os error \d+\)", str(error))
    if in_rust:
        return in_rust[1].strip()
    cause: BaseException | None = error
    while cause:  # torch.save raises a RuntimeError while it handles that of the system
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    own_kind = type(error).__module__.partition(".")[0] not in ("builtins", "train")
    known_apart = isinstance(error, RuntimeError)  # such as torch's errors of memory
    return str(error).partition("\n")[0] if own_kind and not known_apart else ""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; synced to the disk, it replaces `path` when the block ends without an error.

    UserError where the disk is full or the folder cannot be written to; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name, so what a killed process left is overwritten
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(as_json(value), encoding="utf-8")


def as_json(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict:
    try:
        with open_file(path) as file:
            value = json.loads(file.read())
    except FileNotFoundError:
        require(not path.is_symlink(), f"{path}: is a link to nowhere; copy the file that it means")
        deeper = [place.parent for place in path.parent.glob(f"*/{path.name}")]  # such as final_model in a run
        hint = f" (did you mean {deeper[0]}?)" if len(deeper) == 1 else ""
        raise UserError(f"{path}: there is no such file{hint}") from None
    except NotADirectoryError:
        raise UserError(f"{path.parent}: is a file; give the folder of a saved model") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {disguise(path) or f'cannot be read as JSON ({error})'}") from error
    require(isinstance(value, dict), f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_names(path: Path, key: str) -> list[str]:
    """The names under a key of a JSON file."""
    names = read_json(path).get(key)
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(listed, f"{path}: {key!r} must be a list of names")
    return names


@contextmanager
def as_written(path: Path, instead: str) -> Iterator[None]:
    """Around all that takes values out of a file of ours: UserError, with what to do `instead`, where they are others.

    Nothing else belongs within, since a bug of ours would be blamed on the file.
    """
    try:
        yield
    except ALTERED as error:
        raise UserError(f"{path}: is not as it was written; {instead}") from error


def kept_in(path: Path, take: Callable[[dict], T | None]) -> T | None:
    """What `take` finds in a JSON file that only saves making it again; None where there is no such file.

    And where it is damaged or altered, which a line says.
    """
    if not path.is_file():
        return None
    try:
        with as_written(path, "what it kept is made again"):
            return take(read_json(path))
    except UserError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None


def load_tensors(path: Path) -> dict:
    """Load what `torch.save` wrote, tensors and plain containers only: code in the file is never run."""
    try:
        wrong = not_numbers(path) or _compressed(path)
        require(not wrong, f"{path}: {wrong}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old kinds of storage in a damaged file
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError:
        said = f"{path}: refused: damaged, or with Python objects other than tensors, which could run code"
        raise UserError(said) from None
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: truncated, or not a file of tensors; save or copy it again") from error
    require(isinstance(value, dict), f"{path}: must hold a dictionary of tensors, not {type(value).__name__}")
    return value


def _compressed(path: Path) -> str:
    """What is wrong with an archive that would take more memory than it has bytes; torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):  # of torch before 1.6
        return ""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    larger = unpacked > path.stat().st_size
    return f"is a compressed archive, of {in_units(unpacked)} unpacked; save it again with torch.save" if larger else ""


def real_path(path: Path) -> Path:
    """The path without links, as far as it is there; Path.resolve raises where links lead in a circle."""
    return Path(os.path.realpath(path))


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_hash(tensors: Iterable[Tensor], beside: object = "") -> str:
    """SHA-256 of `beside`, a text or a value as JSON, followed by the bytes of the tensors."""
    text = beside if isinstance(beside, str) else json.dumps(beside)
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
