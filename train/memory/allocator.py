"""What a card gives for what is asked: torch's caching allocator, replayed.

The rules of c10/cuda/CUDACachingAllocator.cpp with its default settings:

- a request is rounded up to 512 bytes;
- requests up to 1 MiB are served from segments of 2 MiB; larger ones, below 10 MiB, from segments of 20 MiB;
  the rest from segments of their own, rounded up to 2 MiB;
- the smallest free block that is large enough is used, and split if what remains is at least 512 bytes
  (small) or more than 1 MiB (large);
- a block that is freed is joined with its free neighbours; a segment is given back to the card only when a
  request would not fit otherwise.

"Allocated" is the sum of the blocks in use, "reserved" that of the segments. Addresses within a pool decide
which of two equal blocks is taken: here segments lie in the order in which they were made.
"""

import copy
from bisect import bisect_left, insort
from functools import lru_cache

import numpy as np

from train.memory.account import Account

UNIT = 512
SMALL, SMALL_SEGMENT = 2**20, 2 * 2**20
MEDIUM, MEDIUM_SEGMENT = 10 * 2**20, 20 * 2**20
LARGE_UNIT = 2 * 2**20


def rounded(size):
    """What a request becomes: a multiple of 512 bytes, at least one of them."""
    return np.maximum(-(-size // UNIT), 1) * UNIT


class OutOfMemory(Exception):
    """The request would not fit on the card, even after all free segments were given back."""


class CachingAllocator:
    """The card's memory, `limit` bytes of it or as much as is asked for, and who has it.

    Addresses are of no card: each segment begins behind the one that was made before it, with a gap, so that
    blocks of two segments are never neighbours.
    """

    def __init__(self, limit: int | None = None):
        self.limit = limit
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._segments: dict[int, int] = {}  # address to size
        self._used: dict[int, int] = {}  # the same of blocks in use
        self._free: tuple[list, list] = ([], [])  # large and small blocks: (size, address), sorted
        self._free_at: dict[int, int] = {}  # address to size
        self._free_until: dict[int, int] = {}  # end to address
        self._next_address = 0

    def copied(self, limit: int | None) -> "CachingAllocator":
        """The same state, to go on from in another way."""
        other = copy.copy(self)
        other.limit = limit
        other._free = (self._free[0].copy(), self._free[1].copy())
        for name in ("_segments", "_used", "_free_at", "_free_until"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def take(self, size: int) -> int:
        """The address of a block of at least `size` bytes. Raises OutOfMemory."""
        size = -(-size // UNIT) * UNIT or UNIT
        small = size <= SMALL
        pool = self._free[small]
        position = bisect_left(pool, (size, 0))
        if position < len(pool):
            found, address = pool.pop(position)
            del self._free_at[address], self._free_until[address + found]
        else:
            found, address = self._new_segment(size, small)
        if found - size >= UNIT if small else found - size > SMALL:
            self._put(address + size, found - size, pool)
            found = size
        self._used[address] = found
        self.allocated += found
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return address

    def give_back(self, address: int, small: bool) -> None:
        size = self._used.pop(address)
        self.allocated -= size
        pool = self._free[small]
        after = self._free_at.pop(address + size, None)
        if after is not None:
            del pool[bisect_left(pool, (after, address + size))], self._free_until[address + size + after]
            size += after
        before = self._free_until.pop(address, None)
        if before is not None:
            del pool[bisect_left(pool, (address - before, before))], self._free_at[before]
            size, address = size + address - before, before
        self._put(address, size, pool)

    def _put(self, address: int, size: int, pool: list) -> None:
        insort(pool, (size, address))
        self._free_at[address] = size
        self._free_until[address + size] = address

    def _new_segment(self, size: int, small: bool) -> tuple[int, int]:
        own = -(-size // LARGE_UNIT) * LARGE_UNIT
        segment = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else own
        if self.limit is not None and self.reserved + segment > self.limit:
            self._release_free_segments()
            if self.reserved + segment > self.limit:
                raise OutOfMemory(f"{segment} bytes on top of {self.reserved} of {self.limit}")
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        address, self._next_address = self._next_address, self._next_address + segment + UNIT
        self._segments[address] = segment
        return segment, address

    def _release_free_segments(self) -> None:
        for pool in self._free:
            for size, address in [block for block in pool if self._segments.get(block[1]) == block[0]]:
                pool.remove((size, address))
                del self._segments[address], self._free_at[address], self._free_until[address + size]
                self.reserved -= size


class Replay:
    """A trace's requests, served in their order by an allocator, for this batch or another, on any card.

    `growing` says which storages change with the batch: what comes before the first of them is served once.
    """

    def __init__(self, account: Account, growing: np.ndarray | None = None):
        self.account = account
        times = np.concatenate([account.born, account.died])
        events = np.argsort(times, kind="stable")
        self._events = events[times[events] < account.end].tolist()
        first = int(growing.argmax()) if growing is not None and growing.any() else 0
        self._same = self._events.index(first)
        self._begun, self._addresses = CachingAllocator(), {}
        self._go(self._begun, self._addresses, account.bytes, self._events[: self._same])

    def serve(self, sizes: np.ndarray | None = None, limit: int | None = None) -> CachingAllocator:
        """The allocator afterwards; `sizes` instead of the trace's own for another batch.

        Raises OutOfMemory where `limit` bytes are not enough.
        """
        sizes = self.account.bytes if sizes is None else sizes
        if limit is not None and self._begun.peak_reserved > limit:
            allocator, addresses, events = CachingAllocator(limit), {}, self._events
        else:
            allocator, addresses = self._begun.copied(limit), self._addresses.copy()
            events = self._events[self._same :]
        self._go(allocator, addresses, sizes, events)
        return allocator

    def _go(self, allocator: CachingAllocator, addresses: dict[int, int], sizes: np.ndarray, events: list) -> None:
        requested, count = sizes.tolist(), len(sizes)
        take, give_back = allocator.take, allocator.give_back
        for event in events:
            if event < count:
                if requested[event]:
                    addresses[event] = take(requested[event])
            elif requested[event - count]:
                give_back(addresses.pop(event - count), requested[event - count] <= SMALL)


@lru_cache(maxsize=32)
def served(account: Account) -> CachingAllocator:
    """The allocator of a card without a limit, after this trace."""
    return Replay(account).serve()
