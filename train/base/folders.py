"""Folders that are read as one thing: replaced at once, and known to be incomplete while they are filled."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from train.base.errors import CONTROL, UserError, require
from train.base.files import read_names, sync_folder, write_json, writing

INCOMPLETE = ".incomplete"  # is in a folder while files are added to it, and stays there when that is cut off


@contextmanager
def replacing_folder(path: Path, stale: str = "") -> Iterator[Path]:
    """A temporary folder to write into; when the block ends without an error, it takes the place of `path` at once.

    A process that is killed leaves the folder as it was, or none until the next one puts it back; never a mixture.
    What others have put into the folder moves into the new one, but for files whose name is like `stale`. UserError,
    with the name of the file as it would be in `path`, where the disk is full or the folder cannot be written to.
    """
    path = Path(os.path.realpath(path))  # the folder that a link leads to
    temporary, old = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
    try:
        with writing(path):
            _settle(path, old, stale)
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
            temporary.mkdir(parents=True)
        yield temporary
        with writing(path):
            for folder, _, _ in os.walk(temporary):
                sync_folder(Path(folder))
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            _settle(path, old, stale)
            sync_folder(path.parent)
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    finally:
        with suppress(OSError):
            _settle(path, old, stale)
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(path: Path, old: Path, stale: str) -> None:
    """Bring a replacement to its end, or take it back, wherever it was cut off."""
    if not old.exists():
        return
    if not path.exists():  # cut off between the two renames
        os.replace(old, path)
        return
    for file in [file for file in old.rglob("*") if file.is_symlink() or not file.is_dir()]:
        place = path / file.relative_to(old)
        left_over = file.name.startswith(".") and file.name.endswith(".tmp")
        if not (os.path.lexists(place) or left_over or fnmatch(file.name, stale)):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    shutil.rmtree(old)


@contextmanager
def filling(folder: Path, files: Iterable[Path]) -> Iterator[None]:
    """While entered, files are added to the folder; it counts as incomplete until all of them are there.

    What earlier processes were to add, and were cut off from, counts as well.
    """
    marker = folder / INCOMPLETE
    wanted = {file.relative_to(folder).as_posix() for file in files}
    earlier = read_names(marker, "files") if marker.is_file() else []
    wanted |= {name for name in earlier if not CONTROL.search(name)}  # no file of ours has such a name

    def mark() -> bool:
        missing = [name for name in sorted(wanted) if not os.path.exists(folder / name)]
        write_json(marker, {"files": missing})
        return bool(missing)

    mark()
    yield
    if not mark():
        marker.unlink()


def require_complete(folder: Path) -> None:
    complete = not os.path.lexists(folder / INCOMPLETE)
    require(complete, f"{folder}: is not complete, since what writes it is at work or was cut off; wait for it, or run "
            "the same command again")


@contextmanager
def read_as_one(folder: Path) -> Iterator[None]:
    """While entered, the folder is read; UserError where another one takes its place meanwhile."""

    def identity() -> tuple[int, int] | None:
        try:
            there = folder.stat()
        except OSError:
            return None
        return there.st_dev, there.st_ino

    before = identity()
    yield
    require(identity() == before, f"{folder}: was replaced while it was read; run the command again")
