"""The pictures of a data folder out of a store: decoded once, in several processes, for every command after.

A picture is decoded again if its file has another size, or other times and other content; where times cannot tell,
content alone decides. They can if both, of the last change of the content and of anything about the file, lie well
before the moment at which it was read: what changes a file later changes the second one, whatever the first is set to.
"""

import os
import re
import stat
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from train.base.errors import UserError, require
from train.base.names import expanded
from train.base.processes import on_main, rank
from train.base.progress import progress, say
from train.base.units import GiB, in_units
from train.base.workers import on_all_cores
from train.config.sections import DataConfig
from train.data.images import MOST_BYTES, read_image
from train.data.store import Rows, Store, digest

PLACE = "LDM_STORE"  # an environment variable, and no key of a config: where there is room is the machine's matter
DECODING = f"1, Pillow {PIL.__version__}"  # to be counted up where `read_image` makes other pixels of a file
MADE_OF = [("size", "<i8"), ("modified", "<i8"), ("changed", "<i8"), ("content", "V16"),
           ("darkest", "u1", 3), ("brightest", "u1", 3)]  # fmt: skip
SETTLED = 2 * 10**9  # ns: the coarsest clock of a file system
TASK = 64  # pictures
UNKNOWN = bytes(16)  # in place of a digest
NO_FILE = (-1, -1, -1)
# Seconds: about what it takes to read a picture, for the file and for each of its bytes; what one process more is for.
PER_FILE, PER_BYTE, PER_PROCESS = 4e-4, 3e-8, 2.0
WORTH_SAYING = GiB


@dataclass(frozen=True, eq=False)
class Found:
    """The pictures of a folder that can be read, and why the others cannot be."""

    images: Rows  # uint8 (N, C, H, W)
    files: np.ndarray  # int64 (N,): which of the files they are
    darkest: np.ndarray  # uint8 (N, C), of each channel
    brightest: np.ndarray
    unreadable: list[str]


def read_pictures(folder: Path, files: Sequence[str], names: Sequence[str], config: DataConfig) -> Found:
    """Read the files in a data folder, which are called so in the data set; of several processes, the first decodes."""
    found = []

    def read() -> None:
        with _Reading(folder, files, names, config).held() as reading:
            found.append(reading.all())

    on_main(read)
    if rank():  # by now there is nothing to do, unless this process sees other files, or another disk
        read()
    return found[0]


def place_of(folder: Path, config: DataConfig) -> Path:
    """Where the store of a data folder is: below $LDM_STORE, else in the user's caches, else where they cannot be
    written, in the system's folder of temporary files.
    """
    whole = os.path.realpath(folder)
    of_what = digest(repr((whole, config.resolution, config.channels)).encode()).hex()[:12]
    name = re.sub(r"[^\w.-]", "_", os.path.basename(whole)) or "root"
    root = _root()
    within = os.path.join(os.path.realpath(root), "").startswith(os.path.join(whole, ""))
    require(not within, f"{PLACE} {root}: lies within {folder}, where it would count as a user; give another folder")
    return root / f"{name}-{config.resolution}x{config.channels}-{of_what}"


def _root() -> Path:
    if os.environ.get(PLACE):
        return Path(expanded(os.environ[PLACE]))
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = above = Path(caches, "user-latent-diffusion")
    while not above.exists() and above != above.parent:
        above = above.parent
    temporary = Path(tempfile.gettempdir(), f"user-latent-diffusion-{os.getuid()}")
    return root if os.access(above, os.W_OK) and above.is_dir() else temporary


class _Reading:
    """What is done to a store, by the process that holds it, until all that can be read of N files is in it."""

    def __init__(self, folder: Path, files: Sequence[str], names: Sequence[str], config: DataConfig):
        self.files, self.config = files, config
        shape = (config.channels, config.resolution, config.resolution)
        self.store = Store(place_of(folder, config), shape, np.uint8, MADE_OF)
        self.keys = np.array([digest(f"{DECODING} {name}".encode()) for name in names], "V16")

    @contextmanager
    def held(self) -> Iterator["_Reading"]:
        with self.store.held():
            self.began = time.time_ns()
            self.states = _states(self.files)
            yield self

    def all(self) -> Found:
        store, at = self.store, self.store.find(self.keys)
        todo = self.changed(at)
        if len(todo) and store.is_mostly_waste(int((at >= 0).sum())):
            say(f"{store.folder}: holds mostly pictures that are gone; it is made anew", sys.stderr)
            store.begin_anew()
            at = store.find(self.keys)
            todo = self.changed(at)
        unreadable, rows = self.decode(todo, at), np.arange(len(self.files))
        if len(todo):
            rows = np.delete(rows, list(unreadable))
            at = store.find(self.keys[rows])
        images = store.rows(at, lambda i: read_image(Path(self.files[rows[i]]), self.config).numpy())
        levels = (images.records["made_of"][name][:, : self.config.channels] for name in ("darkest", "brightest"))
        return Found(images, rows, *levels, list(unreadable.values()))

    def changed(self, at: np.ndarray) -> np.ndarray:
        """Which files are not the very ones that the records `at` (N,) tell of."""
        if not len(self.store.records):
            return np.arange(len(at))
        made_of = self.store.records["made_of"][at]
        before = np.stack([made_of[name] for name in ("size", "modified", "changed")], 1)
        return np.flatnonzero((at < 0) | (before != self.states).any(1) | (self.states[:, 1:] <= 0).any(1))

    def decode(self, todo: np.ndarray, at: np.ndarray) -> dict[int, str]:
        """Decode the files `todo` into the store; why some of them cannot be."""
        store, size = self.store, len(todo) * self.store.row_bytes
        places = store.places(len(todo), f"set {PLACE} to a folder with more room, or lower data.resolution")
        if size >= WORTH_SAYING:
            say(f"{len(todo):,} images are decoded once, into {store.folder} ({in_units(size)}; {PLACE} sets another "
                "place)", sys.stderr)
        work = [(i, place, store.records[at[i]] if at[i] >= 0 else None)
                for i, place in zip(todo.tolist(), places, strict=True)]  # fmt: skip
        tasks = [partial(self.read_some, work[begin : begin + TASK]) for begin in range(0, len(work), TASK)]
        seconds = len(todo) * PER_FILE + self.states[todo, 0].clip(0).sum() * PER_BYTE
        unreadable = {}
        with progress(total=len(todo), desc="reading images", unit="", leave=False) as bar:
            for results in on_all_cores(tasks, max(int(seconds / PER_PROCESS), 1)):
                unreadable |= {i: result for i, result in results if isinstance(result, str)}
                store.add((self.keys[i].tobytes(), *result) for i, result in results if i not in unreadable)
                bar.update(len(results))
        store.bring_to_disk()
        return unreadable

    def read_some(self, work: list[tuple]) -> list[tuple[int, tuple | str]]:
        """Of each file what the store adds, once its row is written, or why it cannot be read."""
        return [(i, self.read(Path(self.files[i]), self.states[i].tolist(), place, known)) for i, place, known in work]

    def read(self, path: Path, state: list[int], place: int, known: np.void | None) -> tuple | str:
        content = _content(path, state[0])
        settled = min(state[1:]) > 0 and max(state[1:]) < self.began - SETTLED
        origin = (*state, content) if settled else (state[0], -1, -1, content)
        if known is not None and known["made_of"]["content"].tobytes() == content != UNKNOWN:
            made_of = known["made_of"]
            return int(known["row"]), known["digest"].tobytes(), (*origin, made_of["darkest"], made_of["brightest"])
        try:
            pixels = np.ascontiguousarray(read_image(path, self.config))  # ten times as fast to go through
        except UserError as error:
            return str(error)
        levels = (np.resize(extreme((1, 2)), 3) for extreme in (pixels.min, pixels.max))
        return place, self.store.write(place, pixels), (*origin, *levels)


def _states(paths: Sequence[str]) -> np.ndarray:
    """Size and times of each file, in ns; -1 of what is none: int64 (N, 3)."""
    found = array("q")
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            found.extend(NO_FILE)
            continue
        its = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        found.extend(its if stat.S_ISREG(state.st_mode) else NO_FILE)
    return np.frombuffer(found, np.int64).reshape(-1, 3)


def _content(path: Path, size: int) -> bytes:
    """A digest of the file's bytes."""
    try:
        return digest(path.read_bytes()) if 0 <= size <= MOST_BYTES else UNKNOWN
    except OSError:
        return UNKNOWN
