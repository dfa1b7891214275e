"""Saved models and noise schedules: folders of `config.json` and weights, as `diffusers` saves and opens them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from diffusion.schedule import ScheduleConfig
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import UserError, require
from train.base.files import write_json
from train.base.folders import replacing_folder
from train.base.sound import what_is_wrong
from train.runs import diffusers as convert
from train.runs.diffusers import Options
from train.runs.weights import WEIGHTS, load_weights, save_weights

T = TypeVar("T")
MODELS = {
    "UNet2DConditionModel": (UNet2DConditionModel, convert.unet_to_diffusers, convert.unet_from_diffusers),
    "AutoencoderKL": (AutoencoderKL, convert.vae_to_diffusers, convert.vae_from_diffusers),
    "UserConditionEncoder": (UserConditionEncoder, vars, convert.encoder_from_json),
}


def save(model: nn.Module, folder: Path) -> None:
    """Write `config.json` and the weights (train/runs/weights.py)."""
    name = type(model).__name__
    _, to_json, _ = MODELS[name]
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    wrong = what_is_wrong(weights)
    require(not wrong, f"{folder}: {wrong}; such a model is not saved")
    save_weights(weights, folder)
    write_json(folder / "config.json", {"_class_name": name} | to_json(model.config))


def replacing_model(folder: Path) -> AbstractContextManager[Path]:
    """A folder to write into that takes the place of this one, without an earlier model's weights."""
    return replacing_folder(folder, stale=f"{WEIGHTS}.*")  # they may be in another format


def replace(model: nn.Module, folder: Path) -> None:
    """Save a model by itself in the place of an earlier one, at once."""
    with replacing_model(folder) as new:
        save(model, new)


def load(folder: Path, expected: type[nn.Module] | None = None) -> nn.Module:
    """The model that a folder holds, on the CPU, in fp32 and evaluation mode.

    UserError where the folder holds no model, not an `expected` one, one with an option that is not implemented, or
    weights that do not fit its `config.json`.
    """
    options = Options(folder / "config.json")
    name = options.class_name
    known = isinstance(name, str) and name in MODELS
    require(known, f"{options.path}: _class_name is {name!r}; it must be one of {', '.join(MODELS)}")
    model_class, _, from_json = MODELS[name]
    wanted = expected or model_class
    require(wanted is model_class, f"{options.path}: holds a model {name} where {wanted.__name__} is needed")
    config = _config_of(options, from_json)
    with torch.device("meta"):
        model = model_class(config)
    load_weights(model, folder)
    return model.requires_grad_(True).eval()


def save_schedule(config: ScheduleConfig, folder: Path) -> None:
    """Write `scheduler_config.json`, which the schedulers of `diffusers` open."""
    options = {"_class_name": "DDIMScheduler"} | convert.schedule_to_diffusers(config)
    write_json(folder / "scheduler_config.json", options)


def load_schedule(folder: Path) -> ScheduleConfig:
    """The noise schedule and prediction that a `scheduler_config.json` describes."""
    return _config_of(Options(folder / "scheduler_config.json"), convert.schedule_from_diffusers)


def _config_of(options: Options, from_json: Callable[[Options], T]) -> T:
    """A config from its options; errors of the config's own checks get the file's name in front."""
    try:
        return from_json(options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{options.path}: {error}") from error
