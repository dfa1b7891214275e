"""The rules of torch's caching allocator."""

import numpy as np
import pytest

from tests.memory.presets import SMALL_GPU, config_of
from train.base.units import MiB
from train.memory.allocator import MEDIUM_SEGMENT, SMALL_SEGMENT, CachingAllocator, OutOfMemory, Replay, rounded
from train.memory.fit import Growth, room
from train.memory.scenario import Scenario


class Program:
    """What asks an allocator for memory."""

    def __init__(self, limit: int | None = None):
        self.allocator, self.sizes = CachingAllocator(limit), []

    def take(self, size: int) -> int:
        """The number of the request, by which it is given back."""
        self.sizes.append(int(rounded(np.array(size))))
        number = len(self.sizes) - 1
        self.allocator.serve([number], self.sizes)
        return number

    def give_back(self, number: int) -> None:
        self.allocator.serve([~number], self.sizes)


def test_segments_are_of_2_and_20_mib_or_rounded_to_2_mib():
    for size, segment in ((1, SMALL_SEGMENT), (MiB, SMALL_SEGMENT), (MiB + 1, MEDIUM_SEGMENT),
                          (10 * MiB - 512, MEDIUM_SEGMENT), (10 * MiB, 10 * MiB), (11 * MiB, 12 * MiB)):  # fmt: skip
        program = Program()
        program.take(size)
        assert program.allocator.reserved == segment


def test_a_block_is_split_unless_little_remains():
    program = Program()
    first = program.take(11 * MiB)  # of a segment of 12 MiB: 1 MiB remains, too little to be split off
    assert program.allocator.allocated == 12 * MiB
    program.give_back(first)
    program.take(10 * MiB)  # 2 MiB remain
    assert (program.allocator.allocated, program.allocator.reserved) == (10 * MiB, 12 * MiB)


def test_freed_neighbours_are_joined_and_used_again():
    program = Program()
    blocks = [program.take(5 * MiB) for _ in range(4)]
    assert program.allocator.reserved == 20 * MiB
    for i in (1, 0, 3, 2):
        program.give_back(blocks[i])
    program.take(20 * MiB)
    assert program.allocator.reserved == program.allocator.allocated == 20 * MiB


def test_blocks_of_two_segments_are_never_joined():
    program = Program()
    for block in [program.take(20 * MiB) for _ in range(2)]:
        program.give_back(block)
    program.take(40 * MiB)
    assert program.allocator.reserved == 80 * MiB


def test_free_segments_are_given_back_before_memory_runs_out():
    program = Program(limit=50 * MiB)
    program.give_back(program.take(30 * MiB))
    program.take(40 * MiB)
    assert program.allocator.reserved == 40 * MiB
    with pytest.raises(OutOfMemory):
        program.take(20 * MiB)


def test_a_common_beginning_served_once_changes_nothing():
    growth = Growth(Scenario(config_of("light"), validates=False))
    sizes, whole = growth.sizes(20), room(SMALL_GPU, growth.traced)
    for limit in (None, whole, whole // 2):
        peaks = []
        for growing in (None, growth.slope != 0):
            try:
                given = Replay(growth.traced, True, growing).serve(sizes, limit)
                peaks.append((given.peak_allocated, given.peak_reserved, given.reserved))
            except OutOfMemory as error:
                peaks.append(str(error))
        assert peaks[0] == peaks[1]
