"""What fits: the same run at other batch sizes, and on cards of a given size.

Every storage of a step grows linearly with the batch, or not at all: two traces give the bytes of each at
any batch, and so the whole timeline. A batch that is called the largest can be traced itself, and so can the
next one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from train.memory.account import Account
from train.memory.allocator import OutOfMemory, Replay, served
from train.memory.cards import CardType
from train.memory.outside import context, cublas
from train.memory.setting import Setting
from train.memory.stages import trace

FEW = 2  # the smallest batch that others are like; 1 is a case of its own (some views of it are contiguous)


@lru_cache(maxsize=32)
def account_of(setting: Setting) -> Account:
    """Traced when it is asked for the first time."""
    return Account(trace(setting))


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
    """Whether training would not refuse this precision on this card (train/device.py)."""
    return card.bf16 or setting.stage == "sample" or setting.training.mixed_precision != "bf16"


def room(card: CardType) -> int:
    """Bytes that torch's allocator can give to tensors."""
    return card.bytes - context(card).bytes - cublas(card).bytes


def fits(account: Account, card: CardType) -> bool:
    return fits_in(account, room(card))


def fits_in(account: Account, limit: int) -> bool:
    """Whether the allocator can serve this trace with `limit` bytes."""
    return served(account).peak_reserved <= limit or _serves(Replay(account), account.bytes, limit)


def _serves(replay: Replay, sizes: np.ndarray, limit: int) -> bool:
    try:
        replay.serve(sizes, limit)
    except OutOfMemory:
        return False
    return True


class Growth:
    """A setting's account at any micro-batch of two or more, from its own batch and the next."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.batch = max(FEW, setting.training.batch_size)
        self.few = account_of(setting.with_training(batch_size=self.batch))

    @cached_property
    def slope(self) -> np.ndarray:
        """Bytes of each storage that one more sample adds."""
        more = account_of(self.setting.with_training(batch_size=self.batch + 1))
        if not np.array_equal(self.few.born, more.born) or not np.array_equal(self.few.died, more.died):
            raise AssertionError(f"batches of {self.batch} and {self.batch + 1} do not run the same operators")
        return more.bytes - self.few.bytes

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self.few, growing=self.slope != 0)

    def sizes(self, batch: int) -> np.ndarray:
        return self.few.bytes + (batch - self.batch) * self.slope

    def account(self, batch: int) -> Account:
        """Its account at this batch; traced where the two traces do not speak of it."""
        if batch < FEW:
            return account_of(self.setting.with_training(batch_size=batch))
        return self.few.with_sizes(self.sizes(batch))

    def bound(self, limit: int) -> int:
        """The batch above which even the bytes that are asked for are more than this."""
        live, slope = self.few.live(), self.few.live(self.slope)
        grows = slope > 0
        if live[~grows].max(initial=0) > limit:
            return 0
        return self.batch + int(((limit - live[grows]) // slope[grows]).min())

    def largest(self, card: CardType) -> int:
        """The largest micro-batch that the allocator can serve on this card, 0 where none is.

        It fits, and the next one does not. Fragmentation makes holes: of two batches the larger may fit and the
        smaller not. So it is looked for from above, in steps of 1% of what the bytes alone would allow.
        """
        limit = room(card)
        bound = self.bound(limit)
        step = max(bound // 100, 1)

        def serves(batch: int) -> bool:
            return _serves(self._replay, self.sizes(batch), limit)

        # Where fragmentation usually leaves off; from there up to what does not fit, or down to what does.
        batch = max(int((0.885 if self.setting.training.gradient_checkpointing else 0.98) * bound), FEW)
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
        return low if low >= FEW else int(fits(self.account(1), card))


def largest_batches(setting: Setting, cards: Sequence[CardType]) -> list[int]:
    """The largest micro-batch on each of these cards, which have the same kernels."""
    growth = Growth(on_card(setting, cards[0]))
    return [growth.largest(card) for card in cards]


def fits_traced(setting: Setting, batch: int, card: CardType) -> bool:
    """Whether this batch fits when it is traced itself."""
    return fits(account_of(on_card(setting.with_training(batch_size=batch), card)), card)


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
        found.append(Lever("mixed_precision fp16", "nothing; faster than fp32",
                           lambda s: s.with_training(mixed_precision="fp16")))  # fmt: skip
    if training.batch_size > 1:
        found.append(Lever("batch_size 1, accumulated", "slower; same gradient", alone))
    if not training.gradient_checkpointing:
        again = Lever("gradient_checkpointing", "a second forward pass",
                      lambda s: s.with_training(gradient_checkpointing=True))  # fmt: skip
        found.append(again)
    if not training.ema_on_cpu:
        found.append(Lever("ema_on_cpu", "a copy of the weights over the bus in each step",
                           lambda s: s.with_training(ema_on_cpu=True)))  # fmt: skip
    if setting.processes == 1:
        found.append(Lever("shard_optimizer on 2 cards", "a second card", _on_two_cards))
    if setting.stage == "ldm" and config.user_encoder.tokens_per_user > 1:
        found.append(Lever("tokens_per_user 1", "a new model, with one token for each user", _one_token))
    return found


def alone(setting: Setting) -> Setting:
    """The same window, one sample at a time."""
    return setting.with_training(batch_size=1, gradient_accumulation_steps=setting.training.window)


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
    return [lever.name for lever in pulled]


def _fits_with(pulled: list[Lever], setting: Setting, card: CardType) -> bool:
    for lever in pulled:
        setting = lever.pull(setting)
    return runs(setting, card) and fits(account_of(on_card(setting, card)), card)
