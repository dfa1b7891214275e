"""A small experiment, its models and its images, for tests of what is built from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nets.denoiser import UserDenoiser
from nets.vae import AutoencoderKL
from train.config.schema import Config
from train.data.dataset import UserImages
from train.stages.ldm import make_denoiser

PATH = Path(__file__).with_name("tiny.yaml")
USERS = ("ID1", "ID2", "ID10")


def tiny(*settings: str) -> Config:
    """The config, with `section.key=value` changes."""
    return Config.read(PATH, [(f"--set {s}", *s.split("=", 1)) for s in settings])


def tiny_vae(config: Config, scaling_factor: float | None = 0.8, seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(replace(config.vae, scaling_factor=scaling_factor)).eval()


def tiny_denoiser(config: Config, num_users: int = 3, seed: int = 0) -> UserDenoiser:
    torch.manual_seed(seed)
    return make_denoiser(config, num_users)


def tiny_images(count: int = 12, side: int = 16, channels: int = 3, users: int = 3, seed: int = 0):
    """`UserImages` of noise; image i is of user i modulo `users`."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=rng, dtype=torch.uint8)
    names = [f"ID{user}" for user in range(users)]
    index = torch.arange(count) % users
    paths = [f"{names[user]}/rec{i}_0.png" for i, user in enumerate(index.tolist())]
    return UserImages(pixels, index, names, paths)


def make_images(folder: Path, per_user: int = 7) -> Path:
    """A folder of images for each of three users: each user a colour of its own, each image another noise."""
    rng = np.random.default_rng(0)
    for number, user in enumerate(USERS):
        (folder / user).mkdir(parents=True)
        for i in range(per_user):
            pixels = rng.integers(0, 60, (20, 20, 3))
            pixels[:, :, number] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / user / f"{i}.png")
    return folder
