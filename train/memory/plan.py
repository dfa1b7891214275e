"""What fits: the same run at other batch sizes, and on cards of a given size.

Every storage of a step grows linearly with the batch, or not at all: two traces give the bytes of each at
any batch, and so the whole timeline. A batch that is called the largest is traced itself, and so is the
next one.
"""

from dataclasses import dataclass, replace

import numpy as np

from train.memory.account import Account
from train.memory.allocator import OutOfMemory, Replay, rounded
from train.memory.cards import CardType
from train.memory.outside import context, cublas
from train.memory.setting import Setting
from train.memory.stages import trace

FEW, MORE = 2, 3  # batches that are traced; 1 is a case of its own (some views of it are contiguous)


def account_of(setting: Setting) -> Account:
    return Account(trace(setting))


def room(card: CardType) -> int:
    """Bytes that torch's allocator can give to tensors."""
    return card.bytes - context(card).bytes - cublas(card).bytes


def fits(account: Account, card: CardType, sizes: np.ndarray | None = None) -> bool:
    try:
        Replay(account).serve(sizes, room(card))
    except OutOfMemory:
        return False
    return True


class Growth:
    """A setting's account at any micro-batch of two or more."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.few = account_of(setting.with_training(batch_size=FEW))
        more = account_of(setting.with_training(batch_size=MORE))
        same = np.array_equal(self.few.born, more.born) and np.array_equal(self.few.died, more.died)
        if not same:
            raise AssertionError(f"batches of {FEW} and {MORE} do not run the same operators")
        self.slope = (more.bytes - self.few.bytes) // (MORE - FEW)

    def sizes(self, batch: int) -> np.ndarray:
        return self.few.bytes + (batch - FEW) * self.slope

    def account(self, batch: int) -> Account:
        """Its account at this batch; traced where the two traces do not speak of it."""
        if batch < FEW:
            return account_of(self.setting.with_training(batch_size=batch))
        return self.few.with_sizes(self.sizes(batch))

    def peak(self, batch: int) -> int:
        """Requested bytes, in units of 512."""
        return int(self.few.live(rounded(self.sizes(batch))).max())

    def largest(self, card: CardType, tolerance: float = 0.0) -> int:
        """The largest micro-batch that the allocator can serve on this card; 0 where two are too many.

        A batch that fits, and a larger one that does not, by one or by this part of it.
        """
        if not fits(self.few, card):
            return 0
        low, high = FEW, 2 * FEW
        while self.peak(high) <= room(card):
            low, high = high, 2 * high
        while high - low > 1:  # as if no byte were lost to fragmentation
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= room(card) else (low, middle)
        low = FEW
        while high - low > max(1, tolerance * low):
            middle = max((low + high) // 2, int(0.8 * high)) if low == FEW else (low + high) // 2
            low, high = (middle, high) if fits(self.few, card, self.sizes(middle)) else (low, middle)
        return low


def verified(setting: Setting, batch: int, card: CardType) -> tuple[bool, bool]:
    """Whether the batch that is said to be the largest fits when it is traced itself, and whether the next does."""
    ours, following = (account_of(setting.with_training(batch_size=b)) for b in (batch, batch + 1))
    return fits(ours, card), fits(following, card)


@dataclass(frozen=True)
class Lever:
    """A change of the run that saves memory, and what it costs."""

    name: str
    cost: str
    setting: Setting


def levers(setting: Setting) -> list[Lever]:
    """What this run does not do yet, the cheapest first."""
    training, config = setting.training, setting.config
    if setting.stage == "sample":
        smaller = setting.with_training(batch_size=1)
        return [Lever("batch_size 1", "slower", smaller)] if training.batch_size > 1 else []
    found = []
    if setting.stage == "ldm" and not config.latents.cache_latents:
        cached = replace(config, latents=replace(config.latents, cache_latents=True))
        found.append(Lever("cache_latents", "none; faster", replace(setting, config=cached)))
    if setting.optimizer == "foreach":
        found.append(Lever("fused optimizer", "none", replace(setting, optimizer="fused")))
    if training.mixed_precision == "no":
        found.append(Lever("mixed_precision fp16", "none; faster", setting.with_training(mixed_precision="fp16")))
    if training.batch_size > 1:
        alone = setting.with_training(batch_size=1, gradient_accumulation_steps=training.window)
        found.append(Lever("batch_size 1, accumulated", "slower; same gradient", alone))
    if not training.gradient_checkpointing:
        again = setting.with_training(gradient_checkpointing=True)
        found.append(Lever("gradient_checkpointing", "a second forward pass", again))
    if setting.ema_on_card:
        found.append(Lever("EMA on the CPU", "a copy of the weights over the bus in each step",
                           replace(setting, ema_on_card=False)))  # fmt: skip
    if setting.ranks == 1:
        found.append(Lever("optimizer state on 2 cards", "a second card", replace(setting, ranks=2)))
    if config.user_encoder.tokens_per_user > 1:
        one = replace(config, user_encoder=replace(config.user_encoder, tokens_per_user=1))
        found.append(Lever("tokens_per_user 1", "one token for each user", replace(setting, config=one)))
    return found


def cheapest_that_fits(setting: Setting, card: CardType) -> list[str] | None:
    """Names of the levers to pull, in order of their cost, until the run fits; None where all are not enough."""
    pulled = []
    while not fits(account_of(setting), card):
        left = levers(setting)
        if not left:
            return None
        pulled.append(left[0].name)
        setting = left[0].setting
    return pulled
