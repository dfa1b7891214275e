"""What the trainer, the check before a run, the memory account and the bench know of a stage: the VAE's or the LDM's.

Shapes: B images in a batch, which one optimizer step learns from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from train.config.schema import Config
from train.config.sections import MixedPrecision, TrainingConfig
from train.data.dataset import UserImages
from train.data.split import Split
from train.engine.micro_batch import MicroBatch
from train.engine.step import Learner
from train.runs.checkpoint import Stateful

VALIDATION_IMAGES = 256  # at most


class Stage(Protocol):
    name: str
    """"vae" or "ldm", as in the names of its sections of a config."""
    title: str
    metric: str
    """The metric of a validation that tells which weights are the best."""
    better: Callable[..., float]
    """min or max: which of two values of that metric is the better one."""
    curves: tuple[tuple[str, ...], ...]
    """The metrics whose curves are drawn, those of a panel together."""
    pictures: str
    """The folder within the run's for the pictures of its validations."""
    config: Config
    """The config as it was read."""
    data: UserImages
    split: Split
    model: nn.Module
    """The model that is trained, and averaged."""
    learner: Learner

    # ---- before the first step, in this order

    @classmethod
    def open(cls, config: Config) -> "Stage":
        """Read images and weights, and refuse what does not fit together. Nothing is on the device yet."""

    def build(self, device: torch.device, precision: MixedPrecision) -> None:
        """Make what is trained, and put all models on the device."""

    def choose_split(self, folder: Path) -> None:
        """Take the split that is saved in the run's folder, else that of the VAE it uses, else a new one."""

    def initialise(self) -> None:
        """Set the weights that a new run begins with, as far as they follow from the training images."""

    def begin(self, folder: Path) -> None:
        """Compute what is needed before the first step, in the run's folder."""

    # ---- one optimizer step

    def draw(self, step: int, rows: Tensor) -> Any:
        """The batch of optimizer step `step`: training images `rows` (B,), and all random numbers about them."""

    def losses(self, batch: Any, part: slice) -> dict[str, Tensor]:
        """Named losses of each sample in a part of the batch, (B,) each; "loss" is minimised."""

    def after_step(self, batch: Any, learning_rate: float, micro_batch: MicroBatch) -> dict[str, float]:
        """Train helpers of the model, such as the VAE's discriminator, on the batch; their losses."""
        return {}

    # ---- what comes of it

    def validate(self, averaged: nn.Module, step: int, micro_batch: MicroBatch) -> dict[str, float]:
        """Metrics of the averaged model on validation images, and pictures of what it does."""

    def show(self, averaged: nn.Module, step: int, checkpoint: Path) -> str:
        """Draw what the model of a run that stops at this step does so far; what the user is told of it."""

    def export(self, averaged: nn.Module) -> str:
        """Write `final_model`, and return what the user is told at the end."""

    # ---- what a run of it consists of

    def picture_of(self, step: int) -> Path:
        """The file of the picture that the validation after this step saves."""
        return Path(self.training.output_dir) / self.pictures / f"{step:08d}.png"

    @property
    def training(self) -> TrainingConfig:
        return self.config.training(self.name)

    @property
    def actual_config(self) -> Config:
        """The config, with the settings of the VAE that was loaded in place of its own `vae` section."""

    def models(self) -> list[nn.Module]:
        """All models on the device, but for the moving average."""

    def learners(self) -> list[Learner]:
        """All learners; the model's is the first."""
        return [self.learner]

    def state(self) -> dict[str, Stateful]:
        """What a checkpoint holds of the stage, beside its learner."""

    def inputs(self) -> dict[str, str]:
        """Hashes of what the run learns from; resuming with others is an error."""

    def instead(self) -> dict[str, str]:
        """What to do, by the name of an input, where another one is given than the run began with."""
        return {}
