"""What is looked at before the first step of a run, since later it would cost hours; `train.check` asks the same.

The device itself is train/engine/device.py's matter, the inputs of a run train/runs/folder.py's.
"""

import shutil
import sys
from bisect import bisect_left
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.schedule import ScheduleConfig, make_schedule
from nets.vae import AutoencoderKL
from train.base import processes as parallel
from train.base.errors import UserError
from train.config.schema import Config
from train.data.dataset import UserImages
from train.data.latents import measure_scaling
from train.data.split import evenly
from train.engine.trainer import TrainingConfig
from train.memory.account import Account
from train.memory.fit import account_of, left, on_card
from train.memory.gpus import card_here
from train.memory.overhead import cublas
from train.memory.scenario import Setting
from train.runs import model_folder as pretrained

MiB, GiB = 2**20, 2**30
SANE_STD = (0.5, 2.0)  # of scaled latents; 1 is what the scaling factor is for
MAX_FACTOR = 1000  # of an error in noise that becomes one in x0


def load_fitting_vae(folder: Path, config: Config) -> AutoencoderKL:
    """A trained VAE; UserError where it does not go with the UNet or the images."""
    vae = pretrained.load(folder, AutoencoderKL)
    for ours, theirs, what in (
        (config.unet.latent_channels, vae.config.latent_channels, "unet.latent_channels"),
        (config.data.channels, vae.config.image_channels, "data.channels"),
    ):
        if ours != theirs:
            raise UserError(f"{folder}: the VAE has {theirs} channels where {what} is {ours}")
    if config.data.resolution % vae.config.downscale:
        raise UserError(
            f"{folder}: the VAE divides each side by {vae.config.downscale}, which data.resolution "
            f"{config.data.resolution} is not a multiple of"
        )
    return vae


def require_sane_latents(vae: AutoencoderKL, data: UserImages, rows: Tensor, device: torch.device) -> float:
    """Standard deviation of the scaled latents of a few of the images `rows`; UserError where it is far from 1."""
    rows = evenly(rows, 32)
    std = measure_scaling(vae, data, rows, device)["std"] * vae.config.scaling_factor
    if not SANE_STD[0] < std < SANE_STD[1]:
        raise UserError(
            f"scaled latents of {len(rows)} images have standard deviation {std:.3g}, not about 1: the VAE was trained "
            "on other images, or its scaling_factor is not its own"
        )
    return std


def warn_of_vanishing_signal(config: ScheduleConfig) -> None:
    """A line on stderr where x0 is computed from predicted noise at a timestep that has hardly any signal left.

    x0 = (x - sigma * noise) / alpha there multiplies the network's error: by 158 with the schedule of DDPM, by 20,000
    with the cosine.
    """
    factor = make_schedule(config).level(-1).noise_ratio
    if config.prediction == "noise" and factor > MAX_FACTOR:
        print(
            f"warning: schedule.kind {config.kind} with schedule.prediction noise: at the last timestep the network's "
            f"error is multiplied by {factor:,.0f}, which spoils the samples of every sampler but ddpm; set "
            "schedule.prediction to velocity",
            file=sys.stderr,
        )


def require_disk(training: TrainingConfig, model: nn.Module, adversary: nn.Module | None = None) -> str:
    """Room for all checkpoints of a run, in words: the last ones, the best and one that is being written.

    Each holds the weights, their average and two moments, in float32; an adversary has no average. The final
    model is the average once more. UserError where that much is not free, besides what the run has there already.
    """
    weights, judge = (sum(p.numel() * 4 for p in m.parameters()) if m else 0 for m in (model, adversary))
    checkpoints = training.keep_checkpoints + 2
    folder = Path(training.output_dir).absolute()
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*/*"))
    needed = max((4 * weights + 3 * judge) * checkpoints + weights - there, 0)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {checkpoints} checkpoints and the model need {_size(needed)}, {_size(free)} are free; "
            "lower keep_checkpoints, or give another output_dir"
        )
    return f"checkpoints need {_size(needed)} of {_size(free)} free"


def _size(count: int) -> str:
    return f"{count / GiB:.1f} GiB" if count >= GiB else f"{count / MiB:.1f} MiB"


def plan_micro_batch(config: Config, stage: str, users: int, device: torch.device) -> int:
    """Images that go through the model at once; with auto_batch as many of a share as the card has room for.

    On a card, the predicted memory is compared with what is free there now: UserError where the tensors alone
    are too many, a warning where it is what the allocator adds to them. The CPU's memory is not looked at.
    """
    training, processes = getattr(config, f"{stage}_training"), parallel.world_size()
    share = -(-training.window // processes)
    size = min(training.batch_size, share)
    if device.type != "cuda":
        return size
    here = card_here(device)
    setting = on_card(Setting(config, stage, users), here)
    free, _ = torch.cuda.mem_get_info(device)

    def account(size: int) -> Account:
        return account_of(setting.of_one_process(processes, size))

    def has_room(account: Account) -> bool:
        return left(account, free - cublas(here, account).bytes) >= 0

    if training.auto_batch:
        sizes = sorted({-(-share // pieces) for pieces in range(1, share + 1)}, reverse=True)
        size = sizes[bisect_left(sizes[:-1], True, key=lambda size: has_room(account(size)))]
    planned = account(size)
    needed = planned.peak().bytes
    figures = f"{size} images at once need {needed / GiB:.2f} GiB (predicted), {free / GiB:.2f} GiB are free"
    if needed > free:
        raise UserError(
            f"the card's memory: {figures}; {'' if training.auto_batch else 'set auto_batch to true, or '}set "
            "gradient_checkpointing to true, or use a smaller model (python -m train.memcheck has advice)"
        )
    unsure = "" if has_room(planned) else "; torch's allocator may need more than that, and this may not fit"
    print(f"memory: {figures}{unsure}", file=sys.stderr)
    return size
