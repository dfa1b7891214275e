"""What fits: the same run at other batch sizes, and on cards of a given size.

The bytes of every storage of a step are a multiple of the batch, or the same for every batch. One trace of a batch
that is a prime tells which, and so the whole timeline at any batch. A batch that is called the largest can be
traced itself, and so can the next one.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from train.memory.account import Account
from train.memory.allocator import OutOfMemory, Replay, served
from train.memory.gpus import CardType
from train.memory.overhead import context, cublas
from train.memory.scenario import Setting
from train.memory.stages import trace

FEW = 2  # the smallest batch that others are like; 1 is a case of its own (some views of it are contiguous)
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
SAME = ("setup", "optimizer", "EMA", "pictures")
"""Phases that know of no batch. What else stays the same is made of the same numbers: a model's widths."""


@lru_cache(maxsize=32)
def account_of(setting: Setting) -> Account:
    """Traced when it is asked for the first time, unless the same run was at another batch."""
    batch = setting.training.batch_size
    return traced(setting) if batch < FEW else growth_of(setting).account(batch)


def traced(setting: Setting) -> Account:
    return Account(trace(setting))


class Growth:
    """A setting's account at any micro-batch of two or more, from one trace."""

    def __init__(self, setting: Setting):
        length = setting.config.schedule.num_train_timesteps  # of the schedule's tables, which stay the same
        for prime in (prime for prime in PRIMES if length % prime):
            self.traced = traced(setting.with_training(batch_size=prime))
            multiple = self.traced.bytes % prime == 0
            if not self.traced.bytes[multiple & self.traced.of_phases(SAME)].any():
                break
        else:
            raise AssertionError(f"some storage that is the same for every batch is a multiple of each of {PRIMES}")
        self.slope = np.where(multiple, self.traced.bytes // prime, 0)
        """Bytes of each storage that one more sample adds."""
        self.same = np.where(multiple, 0, self.traced.bytes)

    def sizes(self, batch: int) -> np.ndarray:
        return self.same + batch * self.slope

    def account(self, batch: int) -> Account:
        return self.traced.with_sizes(self.sizes(batch))

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.traced, growing=self.slope > 0)

    def bound(self, limit: int) -> int:
        """The batch above which even the bytes that are asked for are more than this."""
        same, slope = self.traced.live(self.same), self.traced.live(self.slope)
        grows = slope > 0
        if same[~grows].max(initial=0) > limit:
            return 0
        return int(((limit - same[grows]) // slope[grows]).min())


def growth_of(setting: Setting) -> Growth:
    """The same for every batch of this setting."""
    return _growth(setting.with_training(batch_size=FEW))


_growth = lru_cache(maxsize=32)(Growth)


def on_card(setting: Setting, card: CardType | None) -> Setting:
    """The same run with the attention that this card has for it; of no card, the least that the run needs.

    Where a head is not as wide as a kernel wants it, torch takes the plain one; here, for all heads.
    """
    precision = "no" if setting.stage == "sample" else setting.training.mixed_precision
    if precision != "no" and (precision == "bf16" if card is None else card.attention == "flash"):
        return replace(setting, attention="flash")
    unet = setting.config.unet
    odd = card and any(
        channels // heads % card.head_alignment(precision != "no")
        for channels, heads in zip(unet.channels, unet.heads, strict=True)
    )
    return replace(setting, attention="math" if odd else "efficient")


def runs(setting: Setting, card: CardType) -> bool:
    """Whether training would not refuse this precision on this card (train/engine/device.py)."""
    return card.bf16 or setting.stage == "sample" or setting.training.mixed_precision != "bf16"


def room(card: CardType, account: Account) -> int:
    """Bytes that torch's allocator can give to the tensors of this run."""
    return card.bytes - context(card).bytes - cublas(card, account).bytes


def fits(account: Account, card: CardType) -> bool:
    return left(account, room(card, account)) >= 0


def left(account: Account, limit: int) -> int:
    """What the allocator never takes of `limit` bytes, where they are enough for this trace.

    Negative where they are not: how many it would take beyond them if it could.
    """
    unlimited = limit - served(account).peak_reserved
    if unlimited >= 0:
        return unlimited
    try:
        return limit - Replay(account).serve(limit=limit).peak_reserved  # with free segments given back in between
    except OutOfMemory:
        return unlimited


def _serves(replay: Replay, sizes: np.ndarray, limit: int) -> bool:
    try:
        replay.serve(sizes, limit)
    except OutOfMemory:
        return False
    return True


def largest_batch(setting: Setting, card: CardType) -> int:
    """The largest micro-batch that the allocator can serve on this card, 0 where none is.

    It fits, and the next one does not. Fragmentation makes holes: of two batches the larger may fit and the
    smaller not. So it is looked for from above, in steps of 1% of what the bytes alone would allow.
    """
    setting = on_card(setting, card)
    growth = growth_of(setting)
    limit = room(card, growth.traced)
    bound = growth.bound(limit)
    step = max(bound // 100, 1)

    def serves(batch: int) -> bool:
        return _serves(growth.replay, growth.sizes(batch), limit)

    # Where fragmentation usually leaves off; from there up to what does not fit, or down to what does.
    batch = max(int((0.885 if setting.training.gradient_checkpointing else 0.98) * bound), FEW)
    if batch <= bound and serves(batch):
        low, high = batch, batch + step
        while high <= bound and serves(high):
            low, high = high, high + step
    else:
        low, high = batch - step, batch
        while low >= FEW and not serves(low):
            low, high = low - step, low
    low, high = max(low, FEW - 1), min(high, bound + 1)  # the second does not fit, the first is not asked
    while high - low > 1:
        batch = (low + high) // 2
        low, high = (batch, high) if serves(batch) else (low, batch)
    return low if low >= FEW else int(fits(account_of(setting.with_training(batch_size=1)), card))


def fits_traced(setting: Setting, batch: int, card: CardType) -> bool:
    """Whether this batch fits when it is traced itself."""
    return fits(traced(on_card(setting.with_training(batch_size=batch), card)), card)


@dataclass(frozen=True)
class Lever:
    """A change of the run that saves memory, and what it costs."""

    name: str
    cost: str
    pull: Callable[[Setting], Setting]


def levers(setting: Setting) -> list[Lever]:
    """What this run does not do yet, the cheapest first."""
    training, config = setting.training, setting.config
    if setting.stage == "sample":
        smaller = Lever("batch_size 1", "slower", lambda s: s.with_training(batch_size=1))
        return [smaller] if training.batch_size > 1 else []
    found = []
    flips = config.data.horizontal_flip or config.data.vertical_flip
    if setting.stage == "ldm" and not config.latents.cache_latents and not flips:
        found.append(Lever("cache_latents", "nothing; faster", lambda s: s.with_latents(True)))
    if not training.optimizer.fused:
        found.append(Lever("optimizer.fused", "nothing", lambda s: s.with_fused(True)))
    if training.mixed_precision != "fp16":
        cost = "nothing; faster than fp32" if training.mixed_precision == "no" else "some steps, which overflow"
        found.append(Lever("mixed_precision fp16", cost,
                           lambda s: s.with_training(mixed_precision="fp16")))  # fmt: skip
    if training.batch_size > 1:
        found.append(_accumulated(1))
    if not training.gradient_checkpointing:
        again = Lever("gradient_checkpointing", "a second forward pass",
                      lambda s: s.with_training(gradient_checkpointing=True))  # fmt: skip
        found.append(again)
    if not training.ema_on_cpu:
        found.append(Lever("ema_on_cpu", "a copy of the weights over the bus in each step",
                           lambda s: s.with_training(ema_on_cpu=True)))  # fmt: skip
    if setting.processes == 1:
        found.append(Lever("shard_optimizer on 2 cards", "a second card", _on_two_cards))
    elif not training.shard_optimizer:
        found.append(Lever("shard_optimizer", "an exchange of weights in each step",
                           lambda s: s.with_training(shard_optimizer=True)))  # fmt: skip
    if setting.stage == "ldm" and config.user_encoder.tokens_per_user > 1:
        found.append(Lever("tokens_per_user 1", "a new model, with one token for each user", _one_token))
    return found


def alone(setting: Setting) -> Setting:
    """The same window, one sample at a time."""
    return _accumulated(1).pull(setting)


def _accumulated(batch: int) -> Lever:
    """The same window in micro-batches of this size, which divides it."""
    return Lever(f"batch_size {batch}, accumulated", "slower; same gradient", lambda s: s.with_training(
        batch_size=batch, gradient_accumulation_steps=s.training.window // batch
    ))  # fmt: skip


def _on_two_cards(setting: Setting) -> Setting:
    return setting.with_training(shard_optimizer=True).of_one_process(2, setting.training.batch_size)


def _one_token(setting: Setting) -> Setting:
    config = setting.config
    return replace(setting, config=replace(config, user_encoder=replace(config.user_encoder, tokens_per_user=1)))


def cheapest_that_fits(setting: Setting, card: CardType) -> list[str] | None:
    """Names of the levers that make the run fit, the cheapest first; None where all of them do not.

    They are pulled in the order of their cost until it fits, and then those let go that it fits without.
    """
    pulled: list[Lever] = []
    while not _fits_with(pulled, setting, card):
        if len(pulled) == len(levers(setting)):
            return None
        pulled = levers(setting)[: len(pulled) + 1]
    for lever in reversed(pulled[:-1]):
        fewer = [other for other in pulled if other is not lever]
        if _fits_with(fewer, setting, card):
            pulled = fewer
    return [lever.name for lever in _in_the_largest_pieces(pulled, setting, card)]


def _in_the_largest_pieces(pulled: list[Lever], setting: Setting, card: CardType) -> list[Lever]:
    """The same set; where the micro-batch is among them, it is made no smaller than it must be."""
    smallest = _accumulated(1).name
    if smallest not in [lever.name for lever in pulled]:
        return pulled
    training = setting.training
    sizes = [size for size in range(training.batch_size - 1, 0, -1) if training.window % size == 0]
    sets = [[_accumulated(size) if lever.name == smallest else lever for lever in pulled] for size in sizes]
    return sets[bisect_left(sets[:-1], True, key=lambda levers: _fits_with(levers, setting, card))]


def _fits_with(pulled: list[Lever], setting: Setting, card: CardType) -> bool:
    for lever in pulled:
        setting = lever.pull(setting)
    return runs(setting, card) and fits(account_of(on_card(setting, card)), card)
