"""Which runs fit: the account at any micro-batch, and the largest micro-batch that fits on a GPU.

The bytes of every storage of a step are either proportional to the micro-batch or the same for all. One trace with a
prime one tells which, and gives the whole timeline at any.

What is said to fit has room for all that is bounded but not known before it runs: the scratch of kernels at its upper
bound, and what other histories of the allocator change. And no tensor has more elements than an int can count, which
is what kernels such as that of upsample_nearest2d count them with.
"""

import sys
from bisect import bisect_left
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
import torch

from train.base.errors import require
from train.base.processes import world_size
from train.base.units import gib
from train.config.schema import Config
from train.memory.account import Account
from train.memory.allocator import OutOfMemory, Replay, served
from train.memory.gpus import GPU, gpu_here
from train.memory.overhead import CONTEXT, cublas, fragmentation
from train.memory.scenario import Scenario
from train.memory.step import trace_of

MIN_REGULAR_BATCH = 2  # a batch of 1 is traced by itself: some views are contiguous only there
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
MOST_ELEMENTS = 2**31 - 1  # of a tensor
WITHOUT_BATCH = ("setup", "optimizer", "EMA", "pictures")  # phases whose storages do not depend on the batch


@lru_cache(maxsize=32)
def account_of(scenario: Scenario) -> Account:
    """The account of this run, from a trace that all its batch sizes of at least MIN_REGULAR_BATCH share."""
    if scenario.micro_batch < MIN_REGULAR_BATCH:
        return traced(scenario)
    growth = growth_of(scenario)
    return growth.traced.with_sizes(growth.sizes(scenario.micro_batch))


def traced(scenario: Scenario) -> Account:
    return Account(trace_of(scenario))


class Growth:
    """The account of a scenario at any micro-batch of at least MIN_REGULAR_BATCH, from one trace."""

    def __init__(self, scenario: Scenario):
        table_length = scenario.config.schedule.num_train_timesteps  # the schedule's tables do not depend on the batch
        for prime in (prime for prime in PRIMES if table_length % prime):
            self.traced = traced(scenario.with_micro_batch(prime))
            multiple = self.traced.bytes % prime == 0
            if not self.traced.bytes[multiple & self.traced.of_phases(WITHOUT_BATCH)].any():
                break  # it divides no fixed size of these phases; other fixed sizes are products of the same widths
        else:
            raise AssertionError(f"some storage that is the same for every batch is a multiple of each of {PRIMES}")
        self.slope = np.where(multiple, self.traced.bytes // prime, 0)  # bytes that each storage grows by per sample
        self.constant = np.where(multiple, 0, self.traced.bytes)  # bytes that do not depend on the batch

    def sizes(self, batch: int) -> np.ndarray:
        return self.constant + batch * self.slope

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.traced, with_scratch=True, growing=self.slope > 0)

    def bound(self, limit: int) -> int:
        """The largest batch whose tensors alone are at most `limit` bytes, and none has too many elements."""
        constant, slope = self.traced.live(self.constant), self.traced.live(self.slope)
        grows = slope > 0
        if constant[~grows].max(initial=0) > limit:
            return 0
        return min(int(((limit - constant[grows]) // slope[grows]).min()), self.most_counted)

    @cached_property
    def most_counted(self) -> int:
        """The largest batch at which no tensor has more than MOST_ELEMENTS elements."""
        grows = (self.slope > 0) & ~self.traced.is_scratch
        return int((MOST_ELEMENTS * self.traced.itemsize[grows] // self.slope[grows]).min())


def growth_of(scenario: Scenario) -> Growth:
    """The Growth of this scenario; all its batch sizes share one."""
    return _growth(scenario.with_micro_batch(MIN_REGULAR_BATCH))


_growth = lru_cache(maxsize=32)(Growth)


def on_gpu(scenario: Scenario, gpu: GPU | None) -> Scenario:
    """The same run with the attention kernel that it uses on this GPU; None: on the oldest that supports the run.

    torch uses the math kernel where a head's width is not aligned; here one such head makes all of them use it.
    """
    precision, unet = scenario.training.mixed_precision if scenario.trains else "no", scenario.config.unet
    if precision != "no" and (precision == "bf16" if gpu is None else gpu.attention == "flash"):
        return replace(scenario, attention="flash")
    widths = [channels // heads for channels, heads in zip(unet.channels, unet.heads, strict=True)]
    unaligned = gpu and any(width % gpu.head_alignment(precision != "no") for width in widths)
    return replace(scenario, attention="math" if unaligned else "efficient")


def runs(scenario: Scenario, gpu: GPU) -> bool:
    """Whether this GPU supports the run's precision, as in train/engine/precision.py."""
    return gpu.bf16 or not scenario.trains or scenario.training.mixed_precision != "bf16"


def room(gpu: GPU, account: Account) -> int:
    """Bytes that torch's allocator can surely give to the tensors and kernels of this run."""
    return room_within(gpu.bytes - CONTEXT.bytes, gpu, account)


def room_within(free: int, gpu: GPU, account: Account) -> int:
    """The same, of bytes that are free beside the CUDA context."""
    return free - cublas(gpu, account).bytes - fragmentation(free)


def fits(account: Account, gpu: GPU) -> bool:
    return fits_within(account, room(gpu, account))


def fits_within(account: Account, limit: int) -> bool:
    return account.most_elements() <= MOST_ELEMENTS and left(account, limit) >= 0


def left(account: Account, limit: int) -> int:
    """Bytes of `limit` that the allocator does not reserve for this trace; negative if it would need more."""
    without_release = limit - served(account, with_scratch=True).peak_reserved
    if without_release < 0:
        with suppress(OutOfMemory):  # free segments are given back when needed
            return limit - Replay(account, with_scratch=True).serve(limit=limit).peak_reserved
    return without_release


def largest_batch(scenario: Scenario, gpu: GPU) -> int:
    """The largest micro-batch that the allocator can serve on this GPU, 0 if there is none.

    It fits and the next one does not. Because of fragmentation a larger batch may fit where a smaller one does not,
    so bisection alone could miss it: first a bracket is found in steps of 1% of the bound.
    """
    scenario = on_gpu(scenario, gpu)
    growth = growth_of(scenario)
    limit = room(gpu, growth.traced)
    bound = growth.bound(limit)
    step = max(bound // 100, 1)

    def serves(batch: int) -> bool:
        with suppress(OutOfMemory):
            growth.replay.serve(growth.sizes(batch), limit)
            return True
        return False

    # Start where fragmentation usually sets the limit; go up to a batch that does not fit, or down to one that does.
    batch = max(int((0.885 if scenario.training.gradient_checkpointing else 0.98) * bound), MIN_REGULAR_BATCH)
    if batch <= bound and serves(batch):
        low, high = batch, batch + step
        while high <= bound and serves(high):
            low, high = high, high + step
    else:
        low, high = batch - step, batch
        while low >= MIN_REGULAR_BATCH and not serves(low):
            low, high = low - step, low
    # From here on `high` does not fit, and `low` fits or is below the range.
    low, high = max(low, MIN_REGULAR_BATCH - 1), min(high, bound + 1)
    while high - low > 1:
        batch = (low + high) // 2
        low, high = (batch, high) if serves(batch) else (low, batch)
    return low if low >= MIN_REGULAR_BATCH else int(fits(account_of(scenario.with_micro_batch(1)), gpu))


def most_counted(scenario: Scenario, gpu: GPU) -> int:
    """The largest micro-batch at which no tensor has more than MOST_ELEMENTS elements, whatever the memory."""
    return growth_of(on_gpu(scenario, gpu)).most_counted


def fits_traced(scenario: Scenario, batch: int, gpu: GPU) -> bool:
    """Whether this batch fits according to a trace of its own."""
    return fits(traced(on_gpu(scenario.with_micro_batch(batch), gpu)), gpu)


def plan_micro_batch(config: Config, stage: str, users: int, device: torch.device) -> int:
    """The micro-batch of a training; with auto_batch, the largest even part of a process's share that fits the GPU.

    On a GPU, raises UserError if the tensors alone are predicted to need more than is free, and prints a warning if
    what the allocator adds may be too much. The CPU's memory is not checked.
    """
    training, processes = config.training(stage), world_size()
    share = -(-training.images_per_step // processes)
    size = min(training.batch_size, share)
    if device.type != "cuda":
        return size
    gpu = gpu_here(device)
    scenario = on_gpu(Scenario(config, stage, users), gpu)
    free, _ = torch.cuda.mem_get_info(device)

    def account_at(size: int) -> Account:
        return account_of(scenario.of_one_process(processes, size))

    def has_room(size: int) -> bool:
        return fits_within(account_at(size), room_within(free, gpu, account_at(size)))

    if training.auto_batch:
        sizes = sorted({-(-share // pieces) for pieces in range(1, share + 1)}, reverse=True)
        size = sizes[bisect_left(sizes[:-1], True, key=has_room)]
    needed = account_at(size).peak().bytes
    figures = f"{size} images at once need {gib(needed)} GiB (predicted), {gib(free)} GiB are free"
    require(
        needed <= free,
        f"the card's memory: {figures}; {'' if training.auto_batch else 'set auto_batch to true, or '}set "
        "gradient_checkpointing to true, or use a smaller model (python -m train.memcheck has advice)",
    )
    unsure = "" if has_room(size) else "; the allocator and kernels may need more than that, and this may not fit"
    print(f"memory: {figures}{unsure}", file=sys.stderr)
    return size
