"""Rows of numbers on disk, each made once, found by a key, and mapped into memory by every process that reads them.

    FOLDER/rows.raw one after another, all of the same shape and type
    FOLDER/index    a record for each: its key, what it was made of, where it is, and a digest of its numbers
    FOLDER/lock     held by the process that adds rows

Both files only grow. A row is written, and brought to the disk, before its record: a process that is killed loses what
it made in its last second, and others read on meanwhile. Of several records with one key the last one holds. A record
is believed if its own checksum is right and its row lies within the file. A row is believed if it has its digest. To
look at every row at each start would take as long as to read them all, so a process looks where it first reads a row,
and has one that is damaged made anew there and then.
"""

import fcntl
import hashlib
import math
import mmap
import os
import shutil
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.base.errors import UserError, require
from train.base.files import replacing, writing
from train.base.progress import say
from train.base.units import MiB, in_units

SYNC_SECONDS = 1.0  # between two records that are brought to the disk: so much work is lost at most
WASTE = 256 * MiB  # of rows that are no more, from which on it is worth while to begin anew
DIGEST = 16  # bytes
FILES = "rows.raw", "index"


def digest(content: bytes | np.ndarray) -> bytes:
    """BLAKE2b of the bytes, 16 of its own: pictures of one digest are the same picture."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


class Store:
    """The rows in a folder, of one shape and type; `made_of` is the type of what a record tells of its row's origin.

    `records` are those that are believed: an array with the fields key, row, digest and made_of.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: type, made_of: Sequence[tuple] = ()):
        self.folder, self.shape, self.dtype = folder, tuple(shape), np.dtype(dtype)
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
        key = [("key", f"V{DIGEST}"), ("row", "<i8"), ("digest", f"V{DIGEST}")]
        self.record = np.dtype([*key, ("made_of", list(made_of)), ("check", "<u4")])
        self.records, self.pending, self.synced_at = np.empty(0, self.record), [], 0.0
        self.written = 0  # records, believed or not

    # ---- adding rows

    @contextmanager
    def held(self) -> Iterator[None]:
        """While entered, no other process adds rows, and those of others are known.

        UserError where the folder cannot be written to, unless all of its files are there.
        """
        with writing(self.folder), suppress(FileExistsError):
            if not self.folder.is_dir():  # it may be there, on a disk that is only read
                self.folder.mkdir(parents=True)
        with self._locked():
            self._open(os.O_RDWR | os.O_CREAT)
            self._read_index()
            if self.written > len(self.records):
                self._drop_damaged()
            try:
                yield
            finally:
                self.bring_to_disk()

    def look(self) -> None:
        """Open it only to read what others have added."""
        self._open(os.O_RDONLY)
        self._read_index()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with writing(self.folder):
            lock = _open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            with suppress(OSError):  # a file system without locks: what two processes add at once is the same
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"{self.folder}: another process adds to it; waiting for it", sys.stderr)
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _open(self, flags: int) -> None:
        with writing(self.folder):
            self.rows_file, self.index_file = (_open(self.folder / name, flags) for name in FILES)
        for file in (self.rows_file, self.index_file):  # open to the end: what takes this store's place is not this
            weakref.finalize(self, os.close, file)

    def _read_index(self) -> None:
        """Read the records, and say how many cannot be believed; one that was cut off is none."""
        size, room = self.record.itemsize, os.fstat(self.rows_file).st_size // self.row_bytes
        content = memoryview(_read(self.index_file))
        self.written = len(content) // size
        records = np.frombuffer(content, self.record, self.written)
        checks = [zlib.crc32(content[at : at + size - 4]) for at in range(0, self.written * size, size)]
        good = (records["check"] == np.array(checks, np.uint32)) & (records["row"] >= 0) & (records["row"] < room)
        self.records = records[good]
        if not good.all():
            lost = self.written - len(self.records)
            say(f"{self.folder}: is damaged; {lost:,} of {self.written:,} rows are made anew", sys.stderr)

    def _drop_damaged(self) -> None:
        """Leave the believed records alone in the index, so that of the others it is said once."""
        with suppress(UserError), replacing(self.folder / "index") as temporary:
            temporary.write_bytes(self.records.tobytes())
        self._open(os.O_RDWR | os.O_CREAT)
        self._read_index()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The record of each of the keys, V16 (N,): int64 (N,), -1 where there is none."""
        known, asked = (np.ascontiguousarray(some).view("<u8").reshape(-1, 2) for some in (self.records["key"], keys))
        if not len(known):
            return np.full(len(asked), -1)
        order, last = _last_of_each(known[:, 0], asked[:, 0])  # half of a key sorts ten times as fast
        ordered = known[order]
        if ((ordered[1:, 0] == ordered[:-1, 0]) & (ordered[1:, 1] != ordered[:-1, 1])).any():  # once in 10^7 stores
            order, last = _last_of_each(*(some.view(f"S{DIGEST}")[:, 0] for some in (known, asked)))
        at = np.where(last >= 0, order[last], -1)
        return np.where((known[at] == asked).all(1), at, -1)

    def begin_anew(self) -> None:
        for name in FILES:  # not cut off, since others may be reading
            (self.folder / name).unlink()
        self._open(os.O_RDWR | os.O_CREAT)
        self._read_index()

    def is_mostly_waste(self, needed: int) -> bool:
        """Whether there is much in the store beside the rows that are needed."""
        return (self._count() - 2 * needed) * self.row_bytes > WASTE

    def places(self, more: int, instead: str) -> range:
        """Where to write `more` rows. UserError, with what to do `instead`, where there is no room for them."""
        writable = not more or os.access(self.folder, os.W_OK)
        require(writable, f"{self.folder}: cannot be written to, and {more:,} rows are lacking in it; {instead}")
        first, free = self._count(), shutil.disk_usage(self.folder).free
        needed = max((first + more) * self.row_bytes - os.fstat(self.rows_file).st_blocks * 512, 0) if more else 0
        require(needed <= free, f"{self.folder}: {more:,} rows of {in_units(self.row_bytes)} need {in_units(needed)}, "
                f"and {in_units(free)} are free; {instead}")
        return range(first, first + more)

    def _count(self) -> int:
        """Rows up to the last one that has a record."""
        return int(self.records["row"].max(initial=-1)) + 1

    def write(self, row: int, numbers: np.ndarray) -> bytes:
        """Write a row, in any process that was forked from this one; returns its digest."""
        numbers = np.ascontiguousarray(numbers, self.dtype)
        with writing(self.folder):
            _write(self.rows_file, numbers, row * self.row_bytes)
        return digest(numbers)

    def add(self, made: Iterable[tuple]) -> None:
        """Add records of rows that have been written: the key, the row, its digest and what it was made of of each."""
        self.pending += [(*record, 0) for record in made]
        if time.monotonic() - self.synced_at > SYNC_SECONDS:
            self.bring_to_disk()

    def bring_to_disk(self) -> None:
        """Make what has been added survive the end of this process."""
        if not self.pending:
            return
        with writing(self.folder):
            os.fsync(self.rows_file)
            self._append(np.array(self.pending, self.record))
        self.pending, self.synced_at = [], time.monotonic()

    def _append(self, records: np.ndarray) -> None:
        for at in range(len(records)):
            records["check"][at] = zlib.crc32(records[at : at + 1].tobytes()[:-4])
        _write(self.index_file, records, self.written * self.record.itemsize)
        self.written += len(records)
        self.records = np.concatenate([self.records, records])

    def replace(self, record: np.ndarray) -> None:
        """Let this one (1,) hold from now on, for a row whose numbers were made anew and are others."""
        with self._locked():
            self.written = os.fstat(self.index_file).st_size // self.record.itemsize
            self._append(record.copy())

    # ---- reading them

    def rows(self, at: np.ndarray, make: Callable[[int], np.ndarray]) -> "Rows":
        """The rows of the records `at` (N,), in this order; `make` computes the i-th of them anew."""
        return Rows(self, self.records[at], make)


class Rows:
    """Some rows of a store. Indexed by its first axis it gives tensors, as a tensor of all of them would: copies."""

    def __init__(self, store: Store, records: np.ndarray, make: Callable[[int], np.ndarray]):
        self.store, self.records, self.make = store, records, make
        length = (int(records["row"].max(initial=-1)) + 1) * store.row_bytes
        mapped = mmap.mmap(store.rows_file, length, access=mmap.ACCESS_READ) if length else b""
        self.numbers = np.frombuffer(mapped, store.dtype).reshape(-1, *store.shape)
        self.positions, self.seen = np.arange(len(records)), np.zeros(len(records), bool)
        self.said = False

    def __len__(self) -> int:
        return len(self.records)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.store.shape))

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.store.dtype)).dtype

    @property
    def digests(self) -> np.ndarray:
        """Of the numbers of each row, V16 (N,)."""
        return self.records["digest"]

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        chosen = self.positions[index.numpy() if isinstance(index, Tensor) else index]
        numbers = np.array(self.numbers[self.records["row"][chosen]])
        for at, position in np.ndenumerate(chosen):
            if not self.seen[position]:
                numbers[at] = self._believable(position, numbers[at])
        return torch.from_numpy(numbers)

    def _believable(self, position: int, numbers: np.ndarray) -> np.ndarray:
        """The row if it has its digest, else made anew; where that can be written, no process has to do so again."""
        if digest(numbers) == self.records["digest"][position].tobytes():
            self.seen[position] = True
            return numbers
        if not self.said:
            say(f"{self.store.folder}: is damaged; rows of it are made anew where they are read", sys.stderr)
            self.said = True
        numbers = np.ascontiguousarray(self.make(position), self.store.dtype)
        record = self.records[position : position + 1]
        other = record["digest"][0].tobytes() != digest(numbers)
        record["digest"] = np.void(digest(numbers))
        with suppress(UserError, OSError):
            self.store.write(int(record["row"][0]), numbers)
            if other:
                self.store.replace(record)
        return numbers


def _last_of_each(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of the known keys, and for each that is asked for the last in it that is not larger; -1: none."""
    order = np.argsort(known, kind="stable")
    return order, np.searchsorted(known[order], asked, side="right") - 1


def _open(path: Path, flags: int) -> int:
    """A file that is there is opened to be read where it cannot be written."""
    try:
        return os.open(path, flags, 0o644)
    except OSError:
        if not path.is_file():
            raise
        return os.open(path, os.O_RDONLY)


def _read(file: int) -> bytes:
    with open(os.dup(file), "rb") as again:
        again.seek(0)
        return again.read()


def _write(file: int, numbers: np.ndarray, offset: int) -> None:
    """All of the numbers, of which the system may take a part at a time."""
    content = memoryview(numbers).cast("B")
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
