"""The config of one experiment: its sections, what follows from them, and the checks that involve several of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.loss import LossConfig
from diffusion.schedule import ScheduleConfig, timesteps
from nets.condition import UserEncoderConfig
from nets.unet import UNetConfig
from nets.vae import VAEConfig
from train.base.errors import require
from train.base.names import path_of
from train.config.load import Override, change, dump_yaml, load_yaml
from train.config.overrides import overrides_of
from train.config.sections import (
    DataConfig,
    GenerationConfig,
    LatentsConfig,
    LDMTrainingConfig,
    TrainingConfig,
    VAELossConfig,
)

# Widths that follow from others, so that a file may leave them out.
DERIVED = {
    "vae.image_channels": "data.channels",
    "unet.latent_channels": "vae.latent_channels",
    "user_encoder.dim": "unet.cross_attention_dim",
}
# Keys of which one is set: a file's num_steps gives way to the flag --num_epochs, and the other way round.
ALTERNATIVES = tuple((f"{stage}_training.num_epochs", f"{stage}_training.num_steps") for stage in ("vae", "ldm"))
# The least height and width, in pixels, that the last layers of the discriminator and of VGG16 need.
SMALLEST_IMAGE = {"adversarial_weight": 24, "perceptual_weight": 16}


def require_one_of_each(overrides: Sequence[Override]) -> None:
    """UserError where two alternatives are given side by side: neither stands under the other."""
    for group in ALTERNATIVES:
        given = [source for source, key, _ in overrides if key in group]
        require(len(given) < 2, f"{' and '.join(given)}: only one of them can be given")


@dataclass(frozen=True)
class Config:
    seed: int
    data: DataConfig
    vae: VAEConfig
    vae_loss: VAELossConfig
    vae_training: TrainingConfig
    latents: LatentsConfig
    user_encoder: UserEncoderConfig
    unet: UNetConfig
    schedule: ScheduleConfig
    ldm_loss: LossConfig
    ldm_training: LDMTrainingConfig
    sampling: GenerationConfig

    @classmethod
    def read(cls, path: Path, overrides: Sequence[Override] = ()) -> "Config":
        """The config in a file, changed by `overrides` (train/config/load.py)."""
        return load_yaml(cls, path, overrides, DERIVED, ALTERNATIVES)

    @classmethod
    def of(cls, source: "Config | str | os.PathLike[str]", changes: Mapping[str, object] | None = None) -> "Config":
        """A config, or the one in a file, with changes as Python has them (train/config/overrides.py)."""
        overrides = overrides_of(changes or {})
        require_one_of_each(overrides)
        if not isinstance(source, Config):
            return cls.read(path_of(source), overrides)
        return change(source, overrides, DERIVED, ALTERNATIVES) if overrides else source

    def as_yaml(self) -> str:
        """The YAML text that `read` turns into an equal config."""
        return dump_yaml(self, DERIVED)

    def training(self, stage: str) -> TrainingConfig:
        """The training section of `stage`, "vae" or "ldm"."""
        return getattr(self, f"{stage}_training")

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.data.resolution // self.vae.downscale

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(I, H, W) of an image."""
        return self.data.channels, self.data.resolution, self.data.resolution

    def __post_init__(self) -> None:
        data, vae, sampling, trained = self.data, self.vae, self.sampling, self.schedule.num_train_timesteps
        side, levels = data.resolution, len(vae.channels)
        require(self.seed >= 0, f"seed must be 0 or more, not {self.seed}")
        require(side % vae.downscale == 0, f"data.resolution {side} cannot be halved {levels - 1} times by a VAE of "
                f"{levels} levels; use a multiple of {vae.downscale}")
        for term, smallest in SMALLEST_IMAGE.items():
            require(not getattr(self.vae_loss, term) or side >= smallest,
                    f"vae_loss.{term} needs larger images: a data.resolution of at least {smallest}, not {side}")
        require(sampling.steps <= trained,
                f"sampling.steps is {sampling.steps}, more than the {trained} of schedule.num_train_timesteps")
        try:
            timesteps(trained, sampling.steps, sampling.spacing)
        except ValueError as error:
            raise ValueError(f"sampling.steps and sampling.spacing: {error}") from None
        require(not self.latents.cache_latents or not (data.horizontal_flip or data.vertical_flip),
                "flipped images have no cached latents; set latents.cache_latents to false, or data.horizontal_flip "
                "and data.vertical_flip")
