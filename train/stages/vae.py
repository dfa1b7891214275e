"""The first stage: a VAE between images and latents.

Shapes: B batch, I image channels, H W image, Z h w latents.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nets.checkpointing import set_checkpointing
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL, DiagonalGaussian
from train.base.processes import on_main
from train.base.progress import progress, say
from train.base.randomness import generator
from train.base.units import percent
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.dataset import UserImages, draw_flips, evenly, load_images
from train.data.images import save_picture, to_float, to_uint8
from train.data.latents import measure_scaling
from train.data.split import fingerprint
from train.engine.compiling import compile_blocks
from train.engine.micro_batch import MicroBatch
from train.engine.stage import VALIDATION_IMAGES, Stage
from train.engine.step import Learner, make_learner
from train.runs import final_model
from train.runs.checkpoint import Stateful
from train.runs.folder import SPLIT, shared_split
from train.runs.pictures import PICTURE_BATCH, image_grid, user_labels
from train.stages import fidelity
from train.stages.adversary import Adversary
from train.stages.linear_start import has_room, start_linear
from train.stages.vae_loss import load_vgg16, vae_losses

SHOWN_IMAGES = 8
PIXELS_TO_START = 2**20  # of the images that the first weights follow from: 64 of 128x128
POWER = "power_below_0.125", "power_0.125_to_0.25", "power_above_0.25"  # of fidelity.BANDS, over the images' own
FINEST, INACTIVE = POWER[-1], "inactive_latents"


@dataclass(frozen=True, eq=False)
class VAEBatch:
    images: Tensor  # (B, I, H, W), in [-1, 1]
    noise: Tensor  # (B, Z, h, w), standard normal: samples the images' latents
    adversary: Adversary | None  # None before `adversarial_start`


class VAEStage(Stage):
    name, title = "vae", "VAE"
    metric, better = "validation_psnr", max
    curves = (
        ("loss",), ("reconstruction",), ("kl",), ("spectral",), ("perceptual",), ("adversarial", "discriminator"),
        ("validation_psnr",),
    )  # fmt: skip
    pictures = "reconstructions"

    def __init__(self, config: Config, data: UserImages, vae: AutoencoderKL, vgg16: VGG16Distance | None):
        self.config, self.data, self.model, self.vgg16 = config, data, vae, vgg16

    @classmethod
    def open(cls, config: Config) -> "VAEStage":
        data = load_images(config.data)
        torch.manual_seed(generator(config.seed, "weights", 0).initial_seed())
        vae = initial_vae(config)
        loss = config.vae_loss
        return cls(config, data, vae, load_vgg16(loss.perceptual_weights) if loss.perceptual_weight else None)

    @property
    def actual_config(self) -> Config:
        return replace(self.config, vae=self.model.config)

    def build(self, device: torch.device, precision: MixedPrecision) -> None:
        config, self.device = self.config, device
        self.model.to(device)
        set_checkpointing(self.model, self.training.gradient_checkpointing)
        if self.training.compile and device.type != "meta":  # where the account of memory looks at the plain model
            compile_blocks(self.model, device)
        loss, optim, lean = config.vae_loss, self.training.optimizer, self.training.lean_activations
        if self.vgg16:
            self.vgg16.to(device)
        self.adversary = (
            Adversary(config.data.channels, loss, optim, device, precision, lean) if loss.adversarial_weight else None
        )
        shard = self.training.shard_optimizer
        self.learner = make_learner(list(self.model.parameters()), optim, shard, device, precision, lean)

    def choose_split(self, folder: Path) -> None:
        self.split = on_main(lambda: shared_split(self.data, self.config.data, folder / SPLIT))

    def initialise(self) -> None:
        config = self.model.config
        if self.config.latents.vae_path:
            return
        if not has_room(config):
            say(f"VAE: begins with random weights, and so learns more slowly: channels {list(config.channels)} in "
                f"{config.norm_groups} norm_groups leave no room to begin as a linear one; that takes four to a group")
            return

        def start() -> dict[str, Tensor]:
            few = evenly(self.split.train, max(PIXELS_TO_START // self.data.images.shape[-1] ** 2, 1))
            start_linear(self.model, self.data.batch(few), self.config.vae_loss.kl_weight)
            return {name: weight.cpu() for name, weight in self.model.state_dict().items()}

        self.model.load_state_dict(on_main(start))

    # ---- one optimizer step

    def draw(self, step: int, rows: Tensor) -> VAEBatch:
        rng = generator(self.config.seed, "draws", step)
        flips = draw_flips(len(rows), self.config.data, rng)
        images = self.data.batch(rows, *flips).to(self.device)
        side = images.shape[-1] // self.model.config.downscale
        noise = torch.randn(len(rows), self.model.config.latent_channels, side, side, generator=rng).to(self.device)
        adversary = self.adversary if step >= self.config.vae_loss.adversarial_start else None
        if adversary:
            adversary.begin_batch()
        return VAEBatch(images, noise, adversary)

    def losses(self, batch: VAEBatch, part: slice) -> dict[str, Tensor]:
        images, noise, scale = batch.images[part], batch.noise[part], self.learner.scaler.get_scale()
        return vae_losses(self.model, images, noise, self.config.vae_loss, self.vgg16, batch.adversary, scale)

    def after_step(self, batch: VAEBatch, learning_rate: float, micro_batch: MicroBatch) -> dict[str, float]:
        return batch.adversary.learn(batch.images, learning_rate, micro_batch) if batch.adversary else {}

    # ---- validation and export

    def validate(self, averaged: AutoencoderKL, step: int, micro_batch: MicroBatch) -> dict[str, float]:
        return self.measure(averaged, self.picture_of(step))

    def show(self, averaged: AutoencoderKL, step: int, checkpoint: Path) -> str:
        self.measure(averaged, self.picture_of(step))
        return f"reconstructions in {self.picture_of(step)}"

    def measure(self, vae: AutoencoderKL, picture: Path) -> dict[str, float]:
        """What at most 256 validation images keep; saves a picture of a few, with their reconstructions below."""
        data, rows = self.data, evenly(self.split.validation, VALIDATION_IMAGES)
        decoded, mean, std = self.reconstructions(vae, rows)
        shown = evenly(torch.arange(len(rows)), SHOWN_IMAGES)
        pairs = [("image", list(data.images[rows[shown]])), ("decoded", list(decoded[shown]))]
        labels = user_labels(data.user_names)
        save_picture(image_grid(pairs, [labels[user] for user in data.user_index[rows[shown]].tolist()]), picture)
        return what_is_kept(data.images[rows], decoded, mean, std)

    def reconstructions(self, vae: AutoencoderKL, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of images `rows` (N,) of the data set."""
        return reconstructions(vae, self.data.images[rows], self.device)

    def export(self, vae: AutoencoderKL) -> str:
        """Measure the scale of the latents, write `final_model`, and report what its reconstructions keep."""
        folder = Path(self.training.output_dir)
        statistics = measure_scaling(vae, self.data, self.split.train, self.device)
        vae.config = replace(vae.config, scaling_factor=statistics["scaling_factor"])
        final_model.save_vae(folder / final_model.NAME, vae, statistics, self.config, self.data, self.split)
        kept = self.measure(vae, folder / "reconstructions.png")
        inactive = f", {percent(kept[INACTIVE])} of the latents inactive" if INACTIVE in kept else ""
        return (
            f"VAE: validation PSNR {kept['validation_psnr']:.2f} dB, SSIM {kept['validation_ssim']:.3f}, "
            f"{percent(kept[FINEST])} of the power above 0.25 cycles per pixel{inactive}; scaling factor "
            f"{statistics['scaling_factor']:.4f} over {statistics['images']} images; model in "
            f"{folder / final_model.NAME}, pictures in {folder}/reconstructions.png"
        )

    # ---- models, learners and checkpoints

    def models(self) -> list[nn.Module]:
        discriminator = self.adversary and self.adversary.discriminator
        return [model for model in (self.model, self.vgg16, discriminator) if model]

    def learners(self) -> list[Learner]:
        return [self.learner, self.adversary.learner] if self.adversary else [self.learner]

    def state(self) -> dict[str, Stateful]:
        return {"vae": self.model} | ({"adversary": self.adversary} if self.adversary else {})

    def inputs(self) -> dict[str, str]:
        return {"data": fingerprint(self.data, self.split)}


def initial_vae(config: Config) -> AutoencoderKL:
    """The VAE that training starts from: a saved one, or one with random weights."""
    path = config.latents.vae_path
    vae = final_model.load_vae(Path(path), config).train() if path else AutoencoderKL(config.vae)
    vae.config = replace(vae.config, sample_size=config.data.resolution)
    return vae


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images, uint8 (N, I, H, W), out of the VAE, uint8 too; mean and deviation of their latents, (N, Z, h, w)."""
    found = []
    for batch in progress(images.split(PICTURE_BATCH), desc="reconstructing", unit="batch", leave=False):
        decoded, posterior = reconstruct_from(vae, to_float(batch.to(device)))
        found.append((to_uint8(decoded).cpu(), posterior.mean.cpu(), posterior.std.cpu()))
    decoded, mean, std = (torch.cat(part) for part in zip(*found, strict=True))
    return decoded, mean, std


def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (B, I, H, W), decoded from their most likely latents."""
    return reconstruct_from(vae, images)[0]


def reconstruct_from(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, DiagonalGaussian]:
    """The same, and the distribution of the latents."""
    posterior = vae.encode(images)
    return vae.decode(posterior.mode()), posterior


def what_is_kept(real: Tensor, decoded: Tensor, mean: Tensor, std: Tensor) -> dict[str, float]:
    """Of images, uint8 (N, I, H, W); from their reconstructions, and mean and deviation of their latents."""
    kept = {"validation_psnr": fidelity.mean_psnr(decoded, real)}
    kept["validation_ssim"] = float(fidelity.ssim(decoded, real).mean())
    kept |= dict(zip(POWER, fidelity.power_ratios(decoded, real), strict=True))
    if len(real) > 1:  # one image does not tell what varies
        kept[INACTIVE] = fidelity.inactive_latents(mean, std)
    return kept
