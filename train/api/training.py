"""Trainings, which go on from their last checkpoint where they have been begun."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from train.base.processes import joined
from train.config.schema import Config
from train.engine.log import METRICS, read_lines
from train.engine.run import prepared
from train.engine.trainer import Trainer
from train.judge.judged_vae import JudgedVAEStage
from train.memory.fit import plan_micro_batch
from train.memory.verify import watch_memory
from train.runs.final_model import NAME
from train.stages.ldm import LDMStage


@dataclass(frozen=True)
class Trained:
    """What a training has left."""

    folder: Path
    """The config's output_dir, with progress.html and the pictures that were drawn on the way."""
    model: Path
    """Its final_model."""
    metrics: list[dict[str, float]]
    """The lines of metrics.jsonl: each has its step, and what was measured then."""

    @property
    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: value for line in self.metrics for name, value in line.items()}


@joined()
def train_vae(config: Config | str | PathLike[str], changes: Mapping[str, object] | None = None) -> Trained:
    """Train the VAE of a config, or of the one in a file, with `changes` as in {"vae_training.num_steps": 100}.

    UserError where something does not fit together, Stopped where it saves and ends before its last step.
    """
    with prepared(JudgedVAEStage, Config.of(config, changes), plan_micro_batch, watch_memory) as (trainer, look):
        trainer.run(look)
    return left_by(trainer)


@joined()
def train_ldm(config: Config | str | PathLike[str], changes: Mapping[str, object] | None = None) -> Trained:
    """The same of the UNet and the user encoder, on the latents of the VAE that the config names."""
    with prepared(LDMStage, Config.of(config, changes), plan_micro_batch, watch_memory) as (trainer, look):
        trainer.run(look)
    return left_by(trainer)


def left_by(trainer: Trainer) -> Trained:
    """What is in the folder of a run that has come to its end."""
    folder = Path(trainer.training.output_dir)
    return Trained(folder, folder / NAME, read_lines(folder / METRICS))
