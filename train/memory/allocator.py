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

from bisect import bisect_left, insort
from dataclasses import dataclass

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


@dataclass(eq=False, slots=True)
class Block:
    address: int
    size: int
    small: bool
    free: bool = True
    before: "Block | None" = None
    after: "Block | None" = None


class CachingAllocator:
    def __init__(self, limit: int | None = None):
        self.limit = limit
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._free = {True: [], False: []}  # small, large: (size, address, block), sorted
        self._next_address = 0

    def take(self, size: int) -> Block:
        size = max(-(-size // UNIT), 1) * UNIT
        small = size <= SMALL
        pool = self._free[small]
        position = bisect_left(pool, (size, 0))
        block = pool.pop(position)[2] if position < len(pool) else self._new_segment(size, small)
        remaining = block.size - size
        if remaining >= UNIT if small else remaining > SMALL:
            rest = Block(block.address + size, remaining, small, before=block, after=block.after)
            if block.after:
                block.after.before = rest
            block.after, block.size = rest, size
            insort(pool, (rest.size, rest.address, rest))
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def give_back(self, block: Block) -> None:
        self.allocated -= block.size
        block.free = True
        pool = self._free[block.small]
        for other in (block.before, block.after):
            if other is not None and other.free:
                pool.pop(bisect_left(pool, (other.size, other.address)))
                first, second = (other, block) if other is block.before else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after:
                    second.after.before = first
                block = first
        insort(pool, (block.size, block.address, block))

    def _new_segment(self, size: int, small: bool) -> Block:
        own = -(-size // LARGE_UNIT) * LARGE_UNIT
        segment = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < MEDIUM else own
        if self.limit is not None and self.reserved + segment > self.limit:
            self._release_free_segments()
            if self.reserved + segment > self.limit:
                raise OutOfMemory(f"{segment} bytes on top of {self.reserved} of {self.limit}")
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        block = Block(self._next_address, segment, small)
        self._next_address += segment
        return block

    def _release_free_segments(self) -> None:
        for pool in self._free.values():
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            self.reserved -= sum(size for size, _, _ in whole)
            pool[:] = [entry for entry in pool if entry[2].before or entry[2].after]


def replay(account: Account, sizes: np.ndarray | None = None, limit: int | None = None) -> CachingAllocator:
    """Serve every request of a trace in its order; `sizes` instead of its own for another batch.

    Raises OutOfMemory where `limit` bytes are not enough.
    """
    sizes = (account.bytes if sizes is None else sizes).tolist()
    allocator = CachingAllocator(limit)
    blocks: dict[int, Block] = {}
    times = np.concatenate([account.born, account.died])
    count = len(sizes)
    for event in np.argsort(times, kind="stable").tolist():
        if event < count:
            if sizes[event]:
                blocks[event] = allocator.take(sizes[event])
        elif event - count in blocks and times[event] < account.end:
            allocator.give_back(blocks.pop(event - count))
    return allocator
