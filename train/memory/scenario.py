"""A run, as far as its memory depends on it."""

from dataclasses import dataclass, replace

from train.config.schema import Config
from train.engine.trainer import TrainingConfig
from train.memory.components import Stage
from train.memory.cuda_rules import Attention


@dataclass(frozen=True)
class Setting:
    config: Config
    stage: Stage = "ldm"
    users: int = 31
    attention: Attention = "efficient"
    """The best kernel of the card."""
    processes: int = 1
    """That divide every window among them."""
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

    @property
    def ranks(self) -> int:
        """Cards among which the optimizer's state is divided."""
        return self.processes if self.training.shard_optimizer else 1

    def of_one_process(self, processes: int, micro_batch: int) -> "Setting":
        """What each of the processes of a run does: its share of the window."""
        share = -(-self.training.window // processes)
        size = min(micro_batch, share)
        return replace(self, processes=processes).with_training(
            batch_size=size, gradient_accumulation_steps=-(-share // size)
        )

    def with_fused(self, fused: bool) -> "Setting":
        return self.with_training(optimizer=replace(self.training.optimizer, fused=fused))

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
        return replace(same.with_latents(True), attention="efficient", processes=self.ranks, validates=True)
