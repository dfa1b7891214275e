"""A replay of torch's caching allocator: how much GPU memory the requests of a trace take.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings:

- a request is rounded up to 512 bytes;
- requests up to 1 MiB are served from segments of 2 MiB; larger ones, below 10 MiB, from segments of 20 MiB; the rest
  from segments of their own, rounded up to 2 MiB;
- the smallest free block that is large enough is used, of equal ones that with the lowest address (here segments lie in
  the order of their making), and split if what remains is at least 512 bytes (small) or more than 1 MiB (large);
- a freed block is merged with its free neighbours; a segment is given back only when a request would not fit otherwise.

"Allocated" is the sum of the blocks in use, "reserved" the sum of the segments.
"""

import copy
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from train.memory.account import Account

UNIT = 512
SMALL, SMALL_SEGMENT = 2**20, 2 * 2**20
MEDIUM, MEDIUM_SEGMENT = 10 * 2**20, 20 * 2**20
LARGE_UNIT = 2 * 2**20
ADDRESS = 2**48 - 1


def rounded(sizes: np.ndarray) -> np.ndarray:
    """Sizes of requests, rounded up to 512 bytes."""
    return -(-sizes // UNIT) * UNIT


class OutOfMemory(Exception):
    """A request does not fit on the GPU, even after all free segments were given back."""


class CachingAllocator:
    """The blocks and segments of a GPU with `limit` bytes, or without a limit.

    A block is the integer size << 48 | address, in bytes, which sorts like the pair, but faster. Addresses are
    invented, with a gap after each segment, so that blocks of two segments are never neighbours.
    """

    def __init__(self, limit: int | None = None):
        self.limit = limit
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._segments: set[int] = set()  # as blocks
        self._used: dict[int, int] = {}  # blocks by the index of their request
        self._free: tuple[list, list] = ([], [])  # large and small blocks, sorted
        self._free_from: dict[int, int] = {}  # free blocks by start address
        self._free_until: dict[int, int] = {}  # free blocks by end address
        self._next_address = 0

    def copied(self, limit: int | None) -> "CachingAllocator":
        """An independent copy of this state with another limit."""
        other = copy.copy(self)
        other.limit, other._free = limit, tuple(pool.copy() for pool in self._free)
        for name in ("_segments", "_used", "_free_from", "_free_until"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def serve(self, events: Iterable[int], sizes: Sequence[int]) -> None:
        """Event i requests sizes[i] bytes (already `rounded`), event ~i frees them. Raises OutOfMemory.

        It is one loop over plain integers because it runs millions of times.
        """
        used, free_from, free_until, allocated = self._used, self._free_from, self._free_until, self.allocated
        large_and_small, peak = self._free, self.peak_allocated
        for event in events:
            size = sizes[event if event >= 0 else ~event]
            if not size:
                continue
            small = size <= SMALL
            pool = large_and_small[small]
            if event >= 0:
                position = bisect_left(pool, size << 48)
                if position < len(pool):
                    block = pool.pop(position)
                    found, address = block >> 48, block & ADDRESS
                    del free_from[address], free_until[address + found]
                else:
                    found, address = self._new_segment(size, small)
                if found - size >= UNIT if small else found - size > SMALL:
                    rest = address + size
                    free_from[rest] = free_until[address + found] = block = found - size << 48 | rest
                    insort(pool, block)
                    found = size
                used[event] = found << 48 | address
                allocated += found
                if allocated > peak:
                    peak = allocated
            else:
                block = used.pop(~event)
                size, address = block >> 48, block & ADDRESS
                allocated -= size
                end = address + size
                after = free_from.pop(end, None)
                if after is not None:
                    del pool[bisect_left(pool, after)]
                    end += after >> 48
                before = free_until.pop(address, None)
                if before is not None:
                    del pool[bisect_left(pool, before)]
                    address = before & ADDRESS
                free_from[address] = free_until[end] = block = end - address << 48 | address
                insort(pool, block)
        self.allocated, self.peak_allocated = allocated, peak

    def _new_segment(self, size: int, small: bool) -> tuple[int, int]:
        large = -(-size // LARGE_UNIT) * LARGE_UNIT
        segment = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else large
        if self.limit is not None and self.reserved + segment > self.limit:
            self._release_free_segments()
            if self.reserved + segment > self.limit:
                raise OutOfMemory(f"{segment} bytes on top of {self.reserved} of {self.limit}")
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        address, self._next_address = self._next_address, self._next_address + segment + UNIT
        self._segments.add(segment << 48 | address)
        return segment, address

    def _release_free_segments(self) -> None:
        for pool in self._free:
            for block in self._segments.intersection(pool):
                pool.remove(block)
                self._segments.remove(block)
                size, address = block >> 48, block & ADDRESS
                del self._free_from[address], self._free_until[address + size]
                self.reserved -= size


class Replay:
    """Serves the requests of a trace in order, at any batch size and on any GPU.

    `with_scratch`: also what kernels take inside, at most. `growing` marks the storages whose size depends on the
    batch; requests before the first of these are the same at any batch, so they are replayed once and the state is
    copied.
    """

    def __init__(self, account: Account, with_scratch: bool, growing: np.ndarray | None = None):
        self.account = account
        storages = np.flatnonzero(~account.is_scratch | with_scratch)
        times = np.concatenate([account.born[storages], account.died[storages]])
        order = np.argsort(times, kind="stable")
        self._events = np.concatenate([storages, ~storages])[order[times[order] < account.end]].tolist()
        first = int(growing.argmax()) if growing is not None and growing.any() else 0
        self._prefix = self._events.index(first)
        self._after_prefix = CachingAllocator()
        self._after_prefix.serve(self._events[: self._prefix], rounded(account.bytes).tolist())

    def serve(self, sizes: np.ndarray | None = None, limit: int | None = None) -> CachingAllocator:
        """The allocator after all requests, of the traced sizes or these; OutOfMemory if `limit` bytes are too few."""
        sizes = self.account.bytes if sizes is None else sizes
        reuse = limit is None or self._after_prefix.peak_reserved <= limit
        allocator = self._after_prefix.copied(limit) if reuse else CachingAllocator(limit)
        allocator.serve(self._events[self._prefix :] if reuse else self._events, rounded(sizes).tolist())
        return allocator


@lru_cache(maxsize=32)
def served(account: Account, with_scratch: bool = False) -> CachingAllocator:
    """The allocator of a GPU without a memory limit, after this trace."""
    return Replay(account, with_scratch).serve()


class Peaks(NamedTuple):
    """Peaks of a run in bytes: requested by operators, allocated in blocks, reserved in segments."""

    requested: int
    allocated: int
    reserved: int


def peaks_of(account: Account, workspace: int = 0) -> Peaks:
    """The peaks of a trace, without scratch; the bytes of a workspace that exists throughout are added to each."""
    peaks = account.peak().bytes, served(account).peak_allocated, served(account).peak_reserved
    return Peaks(*(peak + workspace for peak in peaks))
