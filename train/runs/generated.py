"""A folder of generated images: `USER/generated_000.png`, ..., and `settings.json`, what decided them."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion.sampling import SamplingConfig
from train.base.errors import UserError
from train.base.files import read_json, tensors_hash, write_json
from train.data.dataset import DataConfig, read_image
from train.runs.folder import is_free
from train.runs.pictures import image_grid, user_labels

SETTINGS = "settings.json"
GRID_USERS, GRID_IMAGES = 31, 30


def settings_of(sampling: SamplingConfig, seed: int, models: tuple[nn.Module, ...]) -> dict:
    """What decides the image of a user and a number, as JSON holds it."""
    weights = tensors_hash(tensor for model in models for tensor in model.state_dict().values())
    settings = {"seed": seed, "sampling": asdict(sampling), "weights": weights}
    return json.loads(json.dumps(settings))  # a tuple comes back as a list


def default_folder(model: Path, settings: dict) -> Path:
    """Beside the model, and named after all that decides the images, so that no others are ever in it."""
    sampling, short = settings["sampling"], tensors_hash((), json.dumps(settings))[:8]
    name = f"{sampling['sampler']}{sampling['steps']}_guidance{sampling['guidance']:g}_seed{settings['seed']}_{short}"
    return model.parent / "generated" / name


def claim_folder(folder: Path, settings: dict) -> None:
    """Make the folder; into one that exists only write what is in it already: images of the same settings."""
    path = folder / SETTINGS
    if path.is_file():
        before = read_json(path)
        differing = [key for key in settings if before.get(key) != settings[key]]
        if differing:
            raise UserError(f"{folder}: holds images of other {' and '.join(differing)}; give another --output_dir")
    elif not is_free(folder):
        raise UserError(f"{folder}: is not an empty folder, nor one of generated images; give another --output_dir")
    write_json(path, settings)


def image_files(folder: Path, user: str) -> list[Path]:
    return sorted((folder / user).glob("*.png"))


def read_pixels(path: Path, config: DataConfig) -> Tensor:
    """An image file as uint8 (C, H, W)."""
    return torch.from_numpy(read_image(path, config.resolution, config.channels)).permute(2, 0, 1)


def overview(folder: Path, names: list[str], config: DataConfig) -> Image.Image:
    """What the folder holds, a row for each user: at most 31 of them, and 30 images of each."""
    rows = [(label, image_files(folder, name)) for label, name in zip(user_labels(names), names, strict=True)]
    shown = [(label, files[:GRID_IMAGES]) for label, files in rows if files][:GRID_USERS]
    return image_grid([(label, [read_pixels(path, config) for path in files]) for label, files in shown])
