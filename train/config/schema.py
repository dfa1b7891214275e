"""The config of one experiment: its sections, what follows from them, and the checks that involve several of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.loss import LossConfig
from diffusion.schedule import ScheduleConfig, timesteps
from nets.condition import UserEncoderConfig
from nets.unet import UNetConfig
from nets.vae import VAEConfig
from train.base.errors import require
from train.config.load import dump_yaml, load_yaml
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
    def read(cls, path: Path, overrides: Sequence[tuple[str, str, str]] = ()) -> "Config":
        """The config in a file, changed by `overrides` (train/config/load.py)."""
        return load_yaml(cls, path, overrides, DERIVED, ALTERNATIVES)

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
