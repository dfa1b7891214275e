"""Everything about a run that its memory depends on."""

import sys
from dataclasses import dataclass, replace
from typing import Literal

from train.config.schema import Config
from train.config.sections import TrainingConfig
from train.memory.cuda_rules import AttentionKernel


@dataclass(frozen=True)
class Scenario:
    config: Config
    stage: Literal["vae", "ldm", "sample"] = "ldm"  # a training, or generating images with a trained LDM
    users: int = 31
    attention: AttentionKernel = "efficient"  # the best kernel of the GPU
    processes: int = 1  # that divide every batch among them
    validates: bool = True  # whether to include the validation and the pictures of the training loop
    device: str = "meta"  # on "cpu" (tests) and "cuda" (--measure) tensors are real, to compare the trace with

    @property
    def training(self) -> TrainingConfig:
        return self.config.vae_training if self.stage == "vae" else self.config.ldm_training

    @property
    def trains(self) -> bool:
        return self.stage != "sample"

    @property
    def micro_batch(self) -> int:
        """Images that go through the model at once."""
        return self.training.batch_size if self.trains else self.config.sampling.batch_size

    @property
    def images_per_step(self) -> int:
        return self.training.images_per_step if self.trains else self.micro_batch

    @property
    def ranks(self) -> int:
        """Number of processes that divide the optimizer's state among them."""
        return self.processes if self.training.shard_optimizer else 1

    def changed(self, **sections: dict) -> "Scenario":
        """The same run with changes in these sections of its config."""
        changed = {name: replace(getattr(self.config, name), **changes) for name, changes in sections.items()}
        return replace(self, config=replace(self.config, **changed))

    def with_training(self, **changes) -> "Scenario":
        return self.changed(**{"vae_training" if self.stage == "vae" else "ldm_training": changes})

    def with_micro_batch(self, size: int) -> "Scenario":
        return self.with_training(batch_size=size) if self.trains else self.changed(sampling={"batch_size": size})

    def accumulated(self, micro_batch: int) -> "Scenario":
        """The same batch, split into micro-batches of this size, which must divide it."""
        pieces = self.images_per_step // micro_batch
        smaller = self.with_micro_batch(micro_batch)
        return smaller.with_training(gradient_accumulation_steps=pieces) if self.trains else smaller

    def of_one_process(self, processes: int, micro_batch: int) -> "Scenario":
        """The run of one of these processes, with its share of the batch."""
        share = -(-self.training.images_per_step // processes)
        size = min(micro_batch, share)
        one = replace(self, processes=processes)
        return one.with_training(batch_size=size, gradient_accumulation_steps=-(-share // size))

    def with_fused(self, fused: bool) -> "Scenario":
        return self.with_training(optimizer=replace(self.training.optimizer, fused=fused))

    def with_latents(self, cached: bool) -> "Scenario":
        """The same run with or without cached latents; caching turns flips off, as it must."""
        no_flips = {"horizontal_flip": False, "vertical_flip": False}
        return self.changed(data=no_flips if cached else {}, latents={"cache_latents": cached})

    def before_steps(self) -> "Scenario":
        """Cache key: equal for all runs whose models and EMA are the same before the first step."""
        common = self.with_fused(False).with_micro_batch(1).with_training(
            batch_size=1, gradient_accumulation_steps=1, mixed_precision="no", gradient_checkpointing=False,
            lean_activations=True, shard_optimizer=False,
        )  # fmt: skip
        return replace(common.with_latents(True), attention="efficient", processes=1, validates=True)

    def models_only(self) -> "Scenario":
        """Cache key: equal for all runs of the same models."""
        return self.before_steps().with_training(ema_on_cpu=False)


def without_compiler(scenario: Scenario) -> Scenario:
    """The run with `compile` off: what compiled blocks keep is not traced. Says so where that is another run."""
    if scenario.training.compile:
        print("compile is true: this is the account of the run without it, which needs other memory", file=sys.stderr)
    return scenario.with_training(compile=False)
