"""A run, as far as its memory depends on it."""

from dataclasses import dataclass, replace
from typing import Literal

from train.config import Config
from train.loop import TrainingConfig
from train.memory.card import Attention
from train.memory.components import Stage


@dataclass(frozen=True)
class Setting:
    config: Config
    stage: Stage = "ldm"
    users: int = 31
    attention: Attention = "efficient"
    """The best kernel of the card."""
    optimizer: Literal["foreach", "fused"] = "foreach"
    ranks: int = 1
    """Cards among which the optimizer's state is divided."""
    ema_on_card: bool = True
    validates: bool = True
    """Whether what the training loop runs between steps is a part of it."""
    device: str = "meta"
    """"cpu" and "cuda" run it in earnest: what a test, and a measurement, hold the trace against."""

    @property
    def training(self) -> TrainingConfig:
        return self.config.vae_training if self.stage == "vae" else self.config.ldm_training

    def with_training(self, **changes) -> "Setting":
        section = "vae_training" if self.stage == "vae" else "ldm_training"
        return replace(self, config=replace(self.config, **{section: replace(self.training, **changes)}))

    def of_one_process(self, processes: int, micro_batch: int) -> "Setting":
        """What each of the processes of a run holds: its share of the window, and of what is divided besides.

        Where there are several, the gradients stay in DDP's buckets from step to step: they are there in the first
        micro-batch too, as they are in any second one.
        """
        share = -(-self.training.window // processes)
        pieces = max(-(-share // micro_batch), 1 if processes == 1 else 2)
        ranks = processes if self.training.shard_optimizer else 1
        return replace(self, ranks=ranks).with_training(
            batch_size=min(micro_batch, share), gradient_accumulation_steps=pieces
        )

    def with_latents(self, cached: bool) -> "Setting":
        """Cached ones are of images that are not flipped."""
        config = self.config
        data = replace(config.data, horizontal_flip=False, vertical_flip=False) if cached else config.data
        return replace(self, config=replace(config, data=data, latents=replace(config.latents, cache_latents=cached)))

    def before_steps(self) -> "Setting":
        """The same for all runs that have the same on the card when a step begins."""
        same = self.with_training(
            batch_size=1, gradient_accumulation_steps=1, mixed_precision="no", gradient_checkpointing=False
        )
        return replace(same.with_latents(True), attention="efficient", validates=True)
