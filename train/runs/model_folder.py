"""Saved models and noise schedules: folders of `config.json` and weights, as `diffusers` saves and opens them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from diffusion.schedule import ScheduleConfig
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import UserError, require
from train.base.files import load_tensors, replacing, write_json
from train.base.sound import what_is_wrong
from train.runs import diffusers as convert
from train.runs.diffusers import Options

try:
    import safetensors.torch as safetensors
    from safetensors import SafetensorError
except ImportError:  # optional: without it, weights are .bin files
    safetensors = None

T = TypeVar("T")
WEIGHTS = "diffusion_pytorch_model"
MODELS = {
    "UNet2DConditionModel": (UNet2DConditionModel, convert.unet_to_diffusers, convert.unet_from_diffusers),
    "AutoencoderKL": (AutoencoderKL, convert.vae_to_diffusers, convert.vae_from_diffusers),
    "UserConditionEncoder": (UserConditionEncoder, vars, convert.encoder_from_json),
}


def save(model: nn.Module, folder: Path) -> None:
    """Write `config.json` and the weights (`.safetensors` where that package is installed, else `.bin`)."""
    name = type(model).__name__
    _, to_json, _ = MODELS[name]
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    wrong = what_is_wrong(weights)
    require(not wrong, f"{folder}: {wrong}; such a model is not saved")
    tensors, pickled = _weights_files(folder)
    written, other = (tensors, pickled) if safetensors else (pickled, tensors)
    with replacing(written) as path:
        if safetensors:
            safetensors.save_file(weights, path, metadata={"format": "pt"})
        else:
            with open(path, "wb") as file:  # torch alone would not say why it could not write
                torch.save(weights, file)
    other.unlink(missing_ok=True)  # of an earlier model
    write_json(folder / "config.json", {"_class_name": name} | to_json(model.config))


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
    path, weights = _read_weights(folder)
    weights = {_present_name(key): tensor.float() for key, tensor in weights.items()}
    _require_fit(path, model.state_dict(), weights)
    model.load_state_dict(weights, strict=True, assign=True)
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


def _weights_files(folder: Path) -> tuple[Path, Path]:
    return folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"


def _read_weights(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file of weights, and what it holds."""
    tensors, pickled = _weights_files(folder)
    if tensors.is_file() and safetensors:
        try:
            path, weights = tensors, safetensors.load_file(tensors)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{tensors}: cannot be read ({error}); save or copy the model again") from error
    elif pickled.is_file():
        path, weights = pickled, load_tensors(pickled)
    else:
        require(not tensors.is_file(), f"{tensors}: reading it needs a package; run `pip install safetensors`")
        variants = sorted([*folder.glob(f"{WEIGHTS}.*.safetensors"), *folder.glob(f"{WEIGHTS}.*.bin")])
        hint = f"; copy {variants[0].name} to {WEIGHTS}{variants[0].suffix}" if variants else ""  # such as .fp16.bin
        raise UserError(f"{folder}: holds neither {tensors.name} nor {pickled.name}{hint}")
    for key, value in weights.items():
        is_weight = isinstance(key, str) and isinstance(value, torch.Tensor)
        require(is_weight, f"{path}: {key!r} is no weight, but {type(value).__name__}")
        plain = value.is_floating_point() and value.layout == torch.strided and not value.is_meta
        require(plain, f"{path}: {key} is not a plain tensor of real numbers")
    return path, weights


def _present_name(key: str) -> str:
    """The present name of a weight; `diffusers` before 0.12 had other names in the VAE's attention."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"mid_block.attentions.0.{old}.", f"mid_block.attentions.0.{new}.")
    return key


def _require_fit(path: Path, expected: dict, found: dict) -> None:
    """UserError unless the weights have the expected names and shapes, and are such as training makes."""
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    for what, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        first = min(keys, default="")
        require(not keys, f"{path}: {what} {first} ({len(keys)} such); its config.json is another model's")
    for key, tensor in expected.items():
        shape, wanted = tuple(found[key].shape), tuple(tensor.shape)
        require(shape == wanted, f"{path}: {key} has shape {shape}, but the config.json beside means {wanted}")
    wrong = what_is_wrong({key: found[key] for key in expected})
    require(not wrong, f"{path}: {wrong}; use an earlier model")
