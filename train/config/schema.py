"""One experiment: the sections of a config file, each a dataclass that stands beside what it configures."""

from dataclasses import dataclass

from diffusion.loss import LossConfig
from diffusion.sampling import SamplingConfig
from diffusion.schedule import ScheduleConfig, timesteps
from nets.condition import UserEncoderConfig
from nets.unet import UNetConfig
from nets.vae import VAEConfig
from train.data.dataset import DataConfig
from train.data.latents import LatentsConfig
from train.engine.trainer import TrainingConfig
from train.stages.vae_loss import VAELossConfig

# Pixels below which the last layers of the discriminator, or of VGG16, have nothing left to look at.
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
    ldm_training: TrainingConfig
    sampling: SamplingConfig

    def __post_init__(self):
        """What no section can know alone: that they fit together."""
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        if self.unet.cross_attention_dim != self.user_encoder.dim:
            raise ValueError(
                f"unet.cross_attention_dim is {self.unet.cross_attention_dim} but user_encoder.dim is "
                f"{self.user_encoder.dim}; give both the same width"
            )
        if self.unet.latent_channels != self.vae.latent_channels:
            raise ValueError(
                f"unet.latent_channels is {self.unet.latent_channels} but vae.latent_channels is "
                f"{self.vae.latent_channels}; give both the same number"
            )
        if self.vae.image_channels != self.data.channels:
            raise ValueError(
                f"vae.image_channels is {self.vae.image_channels} but data.channels is {self.data.channels}; "
                "give both the same number"
            )
        if self.data.resolution % self.vae.downscale:
            raise ValueError(
                f"data.resolution {self.data.resolution} cannot be halved {len(self.vae.channels) - 1} times by a VAE "
                f"of {len(self.vae.channels)} levels; use a multiple of {self.vae.downscale}"
            )
        for term, smallest in SMALLEST_IMAGE.items():
            if getattr(self.vae_loss, term) and self.data.resolution < smallest:
                raise ValueError(
                    f"vae_loss.{term} needs larger images: a data.resolution of at least {smallest}, "
                    f"not {self.data.resolution}"
                )
        if self.sampling.steps > self.schedule.num_train_timesteps:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}, more than the {self.schedule.num_train_timesteps} of "
                "schedule.num_train_timesteps"
            )
        try:
            timesteps(self.schedule.num_train_timesteps, self.sampling.steps, self.sampling.spacing)
        except ValueError as error:
            raise ValueError(f"sampling.steps and sampling.spacing: {error}") from None
        if self.latents.cache_latents and (self.data.horizontal_flip or self.data.vertical_flip):
            raise ValueError(
                "flipped images have no cached latents; set latents.cache_latents to false, or data.horizontal_flip "
                "and data.vertical_flip"
            )
