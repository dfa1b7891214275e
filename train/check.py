"""Before any training: do VAE, UNet, user encoder, data and device fit together? `python -m train.check`

One line for each question; the exit status is 1 when an answer is no.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from diffusion.schedule import make_schedule
from nets.vae import AutoencoderKL
from train import cli
from train.config import Config
from train.data import UserImages, load_images
from train.denoising import denoising_loss, draw_training_window
from train.device import autocast, grad_scaler, pick_device, refuse_emulated_precision
from train.errors import UserError
from train.latents import measure_scaling
from train.ldm import build_denoiser, load_vae, vae_folder_of
from train.optim import make_adamw
from train.randomness import generator
from train.split import load_split, make_split
from train.step import optimizer_step

SANE_STD = (0.5, 2.0)  # of scaled latents; 1 is what the scaling factor is for


def main(argv: list[str] | None = None) -> int:
    parser = cli.make_parser("check", __doc__.splitlines()[0], "ldm")
    config = cli.read_config(parser.parse_args(argv), "ldm")
    facts: dict[str, object] = {}
    checks: list[tuple[str, Callable[[Config, dict], str]]] = [
        ("config", check_config),
        ("device", check_device),
        ("data", check_data),
        ("split", check_split),
        ("VAE", check_vae),
        ("latents", check_latents),
        ("models", check_models),
        ("training step", check_step),
        ("disk", check_disk),
    ]
    failed: list[str] = []
    for name, check in checks:
        try:
            print(f"ok    {name}: {check(config, facts)}")
        except UserError as error:
            failed.append(name)
            print(f"FAIL  {name}: {error}")
        except KeyError as missing:  # a fact that a check which failed would have left
            failed.append(name)
            print(f"FAIL  {name}: not looked at, since there is no {missing.args[0]}")
    print(f"{len(failed)} of {len(checks)} failed: {', '.join(failed)}" if failed else "everything fits together")
    return 1 if failed else 0


def check_config(config: Config, facts: dict) -> str:
    """What could be seen without data has been when the config was read."""
    return f"UNet and user encoder both have context width {config.unet.cross_attention_dim}"


def check_device(config: Config, facts: dict) -> str:
    device = pick_device()
    refuse_emulated_precision(device, config.ldm_training.mixed_precision)
    facts["device"] = device
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA card, so the CPU"
    return f"{name}; mixed precision {config.ldm_training.mixed_precision}"


def check_data(config: Config, facts: dict) -> str:
    data = facts["data"] = load_images(config.data)
    if config.user_encoder.num_users not in (None, len(data.user_names)):
        raise UserError(f"{len(data.user_names)} users, but user_encoder.num_users is {config.user_encoder.num_users}")
    _, channels, side, _ = data.images.shape
    return f"{len(data)} images of {len(data.user_names)} users in {config.data.dir}, {channels}x{side}x{side}"


def check_split(config: Config, facts: dict) -> str:
    data: UserImages = facts["data"]
    saved = vae_folder_of(config) / "split.json"
    split = load_split(saved, data, config.data) if saved.is_file() else make_split(data, config.data)
    facts["split"] = split
    by = f"by recording ({config.data.recording_pattern})" if config.data.recording_pattern else "by file"
    return f"{len(split.train)} to train with, {len(split.validation)} to validate with, {by}"


def check_vae(config: Config, facts: dict) -> str:
    folder = vae_folder_of(config)
    vae = facts["VAE"] = load_vae(folder, config).to(facts["device"])
    return f"{folder}, scaling factor {vae.config.scaling_factor:.4f}"


def check_latents(config: Config, facts: dict) -> str:
    vae: AutoencoderKL = facts["VAE"]
    data, split, device = facts["data"], facts["split"], facts["device"]
    rows = split.train[:: max(len(split.train) // 32, 1)][:32]
    std = measure_scaling(vae, data, rows, device)["std"] * vae.config.scaling_factor
    if not SANE_STD[0] < std < SANE_STD[1]:
        raise UserError(
            f"scaled latents of {len(rows)} images have standard deviation {std:.3g}, not about 1: the VAE was trained "
            "on other images, or its scaling_factor is not its own"
        )
    side = config.data.resolution // vae.config.downscale
    shape = facts["latents"] = (vae.config.latent_channels, side, side)
    return f"{'x'.join(map(str, shape))}, standard deviation {std:.2f} when scaled"


def check_models(config: Config, facts: dict) -> str:
    side = facts["latents"][-1]
    model = facts["models"] = build_denoiser(config, len(facts["data"].user_names), side).to(facts["device"])
    unet, encoder = (sum(p.numel() for p in part.parameters()) for part in (model.unet, model.user_encoder))
    return f"UNet of {unet:,} parameters for {side}x{side} latents, user encoder of {encoder:,}"


def check_step(config: Config, facts: dict) -> str:
    """One forward and backward pass and one update of throw-away models, at the configured precision and batch."""
    model, device, training = facts["models"], facts["device"], config.ldm_training
    shape = (training.batch_size, *facts["latents"])
    schedule = make_schedule(config.schedule)
    draws = draw_training_window(
        shape, config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout, model.user_encoder,
        generator(config.seed, "draws", 0), device,
    )  # fmt: skip
    users = torch.zeros(training.batch_size, dtype=torch.int64, device=device)

    def losses(part: slice) -> dict[str, torch.Tensor]:
        latents = torch.zeros(shape, device=device)[part]
        return {"loss": denoising_loss(model, schedule, config.ldm_loss, latents, users[part], draws[part])}

    result = optimizer_step(
        losses, training.batch_size, training.batch_size, model.trained_parameters(),
        make_adamw(model.trained_parameters(), training.optimizer), grad_scaler(device, training.mixed_precision),
        partial(autocast, device, training.mixed_precision), training.optimizer.max_grad_norm,
    )  # fmt: skip
    return f"{training.batch_size} images forward and backward, loss {result.losses['loss']:.3f}"


def check_disk(config: Config, facts: dict) -> str:
    """A checkpoint holds weights, their average and two moments, in float32; one more is written than is kept."""
    weights = sum(p.numel() for p in facts["models"].parameters()) * 4
    needed = weights * (4 * (config.ldm_training.keep_checkpoints + 1) + 1)
    folder = Path(config.ldm_training.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder}: checkpoints need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    return f"checkpoints need {needed / 2**30:.2f} GiB of {free / 2**30:.0f} GiB free"


if __name__ == "__main__":
    cli.run(main)
