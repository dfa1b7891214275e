"""A whole run of `train.ldm`, as a user starts it: how long until its first step, and how many images per second.

Beside it the recipe that this project replaces: one image at a time, four to an optimizer step, and the VAE encodes in
the loop, with the models of `diffusers`. Shapes: N images, I channels, H W pixels.
"""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.vae import AutoencoderKL
from train.base.errors import UserError
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.dataset import UserImages
from train.data.images import save_picture, to_picture
from train.data.latents import measure_scaling
from train.engine.log import METRICS, read_lines
from train.engine.precision import autocast_to
from train.runs import model_folder
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers
from train.speed.clock import Stopwatch, Turn

USERS, IMAGES_PER_USER = 3, 8
STEPS = 6  # of the run whose images per second count
ACCUMULATION = 4  # of the old recipe


def run_of_ldm(config: Config) -> dict[str, float]:
    """Seconds from the command to the end of its first step; images per second of steps, with all that a run does."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        pixels = torch.randint(0, 256, (USERS * IMAGES_PER_USER, *config.image_shape), dtype=torch.uint8)
        for number, image in enumerate(pixels):
            user = folder / f"data/ID{number % USERS}"
            user.mkdir(parents=True, exist_ok=True)
            save_picture(to_picture(image), user / f"{number}.png")
        save_vae(config, pixels, folder / "vae")
        prepared = replace(
            config,
            data=replace(config.data, dir=str(folder / "data"), recording_pattern=None, recordings_per_user=None),
            latents=replace(config.latents, vae_path=str(folder / "vae")),
            user_encoder=replace(config.user_encoder, num_users=None),
        )
        first, _ = until_logged(prepared, folder / "first", 1)
        _, line = until_logged(prepared, folder / "several", STEPS)
        return {"seconds_to_first_step": first, "images_per_second": line["images_per_second"]}


def save_vae(config: Config, pixels: Tensor, folder: Path) -> None:
    """One with random weights, and the scale that its latents have."""
    vae = AutoencoderKL(config.vae).eval()
    rows = torch.arange(len(pixels))
    data = UserImages(pixels, torch.zeros(len(pixels), dtype=torch.int64), [""], [""] * len(pixels))
    scale = measure_scaling(vae, data, rows, torch.device("cpu"))["scaling_factor"]
    vae.config = replace(vae.config, scaling_factor=scale, sample_size=config.data.resolution)
    folder.mkdir()
    model_folder.save(vae, folder)


def until_logged(config: Config, folder: Path, steps: int) -> tuple[float, dict]:
    """Run `train.ldm` for so many steps: the seconds until it logs the last one, and that line. Then it is ended."""
    training = replace(config.ldm_training, output_dir=str(folder), num_steps=steps, num_epochs=None)
    path = folder.with_suffix(".yaml")
    path.write_text(replace(config, ldm_training=training).as_yaml(), encoding="utf-8")
    began = time.perf_counter()
    with open(folder.with_suffix(".log"), "w+") as log:
        command = [sys.executable, "-m", "train.ldm", "--config", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not (lines := read_lines(folder / METRICS)):
                if process.poll() is not None:
                    log.seek(0)
                    raise UserError(f"a run of train.ldm ended without a step: {log.read().strip()[-500:]}")
                time.sleep(0.02)
            return time.perf_counter() - began, lines[0]
        finally:
            process.kill()
            process.wait()


def old_step(diffusers: ModuleType, config: Config, device: torch.device, precision: MixedPrecision) -> Turn:
    """An optimizer step of the old recipe, on ACCUMULATION images."""
    config = replace(config, unet=replace(config.unet, condition_in_time_embedding=False))
    vae = diffusers.AutoencoderKL(**vae_to_diffusers(config.vae)).to(device).requires_grad_(False)
    unet = diffusers.UNet2DConditionModel(**unet_to_diffusers(config.unet)).to(device)
    users, autocast = nn.Embedding(1, config.unet.cross_attention_dim).to(device), autocast_to(device, precision)
    parameters = [*unet.parameters(), *users.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    alphas = torch.linspace(0.99, 0.01, 1000, device=device)

    def take(watch: Stopwatch) -> None:
        for _ in range(ACCUMULATION):
            image = torch.rand(1, *config.image_shape, device=device) * 2 - 1
            t, user = torch.randint(1000, (1,), device=device), torch.zeros(1, dtype=torch.int64, device=device)
            with autocast():
                with torch.no_grad():
                    latents = vae.encode(image).latent_dist.sample()
                noise = torch.randn_like(latents)
                noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
                loss = F.mse_loss(unet(noisy, t, users(user)[:, None]).sample.float(), noise)
            (loss / ACCUMULATION).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("all")

    return take
