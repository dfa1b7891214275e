"""Before any training: do VAE, UNet, user encoder, data and device fit together? `python -m train.check`

One line for each question; the exit status is 1 when an answer is no.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from diffusion.schedule import make_schedule
from nets.vae import AutoencoderKL
from train.base.errors import UserError
from train.base.randomness import generator
from train.config import cli
from train.config.schema import Config
from train.data.dataset import UserImages, load_images
from train.data.latents import latent_shape
from train.data.split import Split, load_split, make_split
from train.engine.device import MixedPrecision, autocast, grad_scaler, native_precision, pick_device
from train.engine.optim import make_adamw
from train.engine.step import StepResult, optimizer_step
from train.ldm import build_denoiser, load_vae, refuse_other_users, vae_folder_of
from train.stages.denoising import UserDenoiser, denoising_loss, draw_training_window
from train.stages.preflight import require_disk, require_sane_latents

T = TypeVar("T")


class Checks:
    """Prints a line for each check, and counts those that fail and those that cannot be looked at."""

    def __init__(self):
        self.count = self.skipped = 0
        self.failed: list[str] = []

    def __call__(self, name: str, check: Callable[..., tuple[T, str]], *needed: object) -> T | None:
        """What the check found, or None where it fails, or where one before it failed that it needs."""
        self.count += 1
        if any(fact is None for fact in needed):
            self.skipped += 1
            print(f"skip  {name}: needs what failed above")
            return None
        try:
            found, sentence = check(*needed)
        except (UserError, RuntimeError, MemoryError) as error:
            reason = str(error) if isinstance(error, UserError) else cli.out_of_memory(error)
            if not reason:
                raise
            self.failed.append(name)
            print(f"FAIL  {name}: {reason}")
            return None
        print(f"ok    {name}: {sentence}")
        return found


def main(argv: list[str] | None = None) -> int:
    parser = cli.make_parser("check", __doc__.splitlines()[0], "ldm")
    config = cli.read_config(parser.parse_args(argv), "ldm")
    check = Checks()
    check("config", check_config, config)
    device, precision = check("device", check_device, config) or (None, None)
    data = check("data", check_data, config)
    split = check("split", check_split, config, data)
    vae = check("VAE", check_vae, config, device)
    latents = check("latents", check_latents, config, vae, data, split, device)
    model = check("models", check_models, config, latents, data, device)
    check("training step", check_step, config, model, latents, device, precision)
    check("disk", check_disk, config, model)
    skipped = f"; {check.skipped} skipped" if check.skipped else ""
    failed = f"{len(check.failed)} of {check.count} failed: {', '.join(check.failed)}{skipped}"
    print(failed if check.failed else "everything fits together")
    return 1 if check.failed else 0


# Each check returns what later ones need, and a sentence; it raises UserError where the answer is no.


def check_config(config: Config) -> tuple[Config, str]:
    """What could be seen without data has been when the config was read."""
    return config, f"UNet and user encoder both have context width {config.unet.cross_attention_dim}"


def check_device(config: Config) -> tuple[tuple[torch.device, MixedPrecision], str]:
    device = pick_device()
    precision = native_precision(device, config.ldm_training.mixed_precision)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA card, so the CPU"
    return (device, precision), f"{name}; mixed precision {precision}"


def check_data(config: Config) -> tuple[UserImages, str]:
    data = load_images(config.data)
    refuse_other_users(config, data)
    _, channels, side, _ = data.images.shape
    return data, f"{len(data)} images of {len(data.user_names)} users in {config.data.dir}, {channels}x{side}x{side}"


def check_split(config: Config, data: UserImages) -> tuple[Split, str]:
    saved = vae_folder_of(config) / "split.json"
    split = load_split(saved, data, config.data) if saved.is_file() else make_split(data, config.data)
    by = f"by recording ({config.data.pattern})" if config.data.pattern else "by file"
    return split, f"{len(split.train)} to train with, {len(split.validation)} to validate with, {by}"


def check_vae(config: Config, device: torch.device) -> tuple[AutoencoderKL, str]:
    folder = vae_folder_of(config)
    vae = load_vae(folder, config).to(device)
    return vae, f"{folder}, scaling factor {vae.config.scaling_factor:.4f}"


def check_latents(
    config: Config, vae: AutoencoderKL, data: UserImages, split: Split, device: torch.device
) -> tuple[tuple[int, int, int], str]:
    """The shape of an image's latents; of a few they are encoded, to see their scale."""
    std = require_sane_latents(vae, data, split.train, device)
    shape = latent_shape(vae, data)
    return shape, f"{'x'.join(map(str, shape))}, standard deviation {std:.2f} when scaled"


def check_models(
    config: Config, latents: tuple[int, int, int], data: UserImages, device: torch.device
) -> tuple[UserDenoiser, str]:
    side = latents[-1]
    model = build_denoiser(config, len(data.user_names), side).to(device)
    unet, encoder = (sum(p.numel() for p in part.parameters()) for part in (model.unet, model.user_encoder))
    return model, f"UNet of {unet:,} parameters for {side}x{side} latents, user encoder of {encoder:,}"


def check_step(
    config: Config, model: UserDenoiser, latents: tuple[int, int, int], device: torch.device,
    precision: MixedPrecision,
) -> tuple[StepResult, str]:  # fmt: skip
    """One forward and backward pass and one update of throw-away models, at the configured precision and batch."""
    training = config.ldm_training
    x0 = torch.zeros(training.batch_size, *latents, device=device)
    schedule = make_schedule(config.schedule)
    draws = draw_training_window(
        x0.shape, config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout, model.user_encoder,
        generator(config.seed, "draws", 0), device,
    )  # fmt: skip
    users = torch.zeros(training.batch_size, dtype=torch.int64, device=device)

    def losses(part: slice) -> dict[str, torch.Tensor]:
        return {"loss": denoising_loss(model, schedule, config.ldm_loss, x0[part], users[part], draws[part])}

    result = optimizer_step(
        losses, training.batch_size, training.batch_size, model.trained_parameters(),
        make_adamw(model.trained_parameters(), training.optimizer), grad_scaler(device, precision),
        partial(autocast, device, precision), training.optimizer.max_grad_norm,
    )  # fmt: skip
    return result, f"{training.batch_size} images forward and backward, loss {result.losses['loss']:.3f}"


def check_disk(config: Config, model: UserDenoiser) -> tuple[bool, str]:
    return True, require_disk(config.ldm_training, model)


if __name__ == "__main__":
    cli.run(main)
