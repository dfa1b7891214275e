"""Saved models: folders of `config.json` and weights that `diffusers` opens, and the reverse.

    save(model, directory)        an AutoencoderKL, UNet2DConditionModel or UserConditionEncoder
    load(directory) -> model      whichever of the three the folder holds, from us or from `diffusers`
    save_schedule, load_schedule  the noise schedule, as `scheduler_config.json`
    save_users, load_users        the users' names, in the order of their indices
"""

from pathlib import Path

import torch
from torch import nn

from diffusion.schedule import ScheduleConfig
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import CONTROL, UserError
from train.base.files import load_tensors, read_json, replacing, write_json
from train.runs import diffusers as convert
from train.runs.diffusers import Options

try:
    import safetensors.torch as safetensors
    from safetensors import SafetensorError
except ImportError:  # optional: without it, weights are .bin files
    safetensors = None

WEIGHTS = "diffusion_pytorch_model"
MODELS = {
    "UNet2DConditionModel": (UNet2DConditionModel, convert.unet_to_diffusers, convert.unet_from_diffusers),
    "AutoencoderKL": (AutoencoderKL, convert.vae_to_diffusers, convert.vae_from_diffusers),
    "UserConditionEncoder": (UserConditionEncoder, convert.encoder_to_json, convert.encoder_from_json),
}


def save(model: nn.Module, directory: Path | str) -> None:
    """Write `config.json` and the weights (`.safetensors` where that package is installed, else `.bin`)."""
    directory = Path(directory)
    name = type(model).__name__
    _, to_json, _ = MODELS[name]
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    tensors, pickled = directory / f"{WEIGHTS}.safetensors", directory / f"{WEIGHTS}.bin"
    if safetensors:
        with replacing(tensors) as path:
            safetensors.save_file(weights, path, metadata={"format": "pt"})
    else:
        with replacing(pickled) as path:
            torch.save(weights, path)
    (pickled if safetensors else tensors).unlink(missing_ok=True)  # of an earlier model: stale
    write_json(directory / "config.json", {"_class_name": name} | to_json(model.config))


def load(directory: Path | str, expected: type[nn.Module] | None = None) -> nn.Module:
    """The model that a folder holds, on the CPU, in fp32 and evaluation mode.

    Raises UserError when the folder holds no model, not an `expected` one, one with an option that is not
    implemented, or weights that do not fit its `config.json`.
    """
    options = Options(Path(directory) / "config.json")
    name = options.class_name
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{options.path}: _class_name is {name!r}; it must be one of {', '.join(MODELS)}")
    model_class, _, from_json = MODELS[name]
    if expected not in (None, model_class):
        raise UserError(f"{options.path}: holds a model {name} where {expected.__name__} is needed")
    config = _build(from_json, options)
    with torch.device("meta"):
        model = model_class(config)
    path, weights = _read_weights(Path(directory))
    for key, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise UserError(f"{path}: {key} is not a plain tensor of real numbers")
    weights = {_present_name(key): tensor.float() for key, tensor in weights.items()}
    _refuse_misfit(path, model.state_dict(), weights)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(True).eval()


def save_schedule(config: ScheduleConfig, directory: Path | str) -> None:
    """Write `scheduler_config.json`, which the schedulers of `diffusers` open."""
    options = {"_class_name": "DDIMScheduler"} | convert.schedule_to_diffusers(config)
    write_json(Path(directory) / "scheduler_config.json", options)


def load_schedule(directory: Path | str) -> ScheduleConfig:
    """The noise schedule and prediction that a `scheduler_config.json` describes."""
    return _build(convert.schedule_from_diffusers, Options(Path(directory) / "scheduler_config.json"))


def save_users(names: list[str], directory: Path | str) -> None:
    """Write `users.json`: the folder names of the users, in the order of their indices."""
    write_json(Path(directory) / "users.json", {"users": names})


def load_users(directory: Path | str) -> list[str]:
    path = Path(directory) / "users.json"
    names = read_json(path).get("users")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: 'users' must be a list of names")
    if not names:
        raise UserError(f"{path}: names no user")
    for name in names:  # a user's images are written to a folder of that name
        if Path(name).name != name or name in ("", ".", "..") or CONTROL.search(name):
            raise UserError(f"{path}: the user {name!r} is not the name of a folder")
        if names.count(name) > 1:
            raise UserError(f"{path}: the user {name!r} stands there twice")
    return names


def _build(from_json, options: Options):
    """A config from its options; what the config's own checks say gets the file's name put before it."""
    try:
        return from_json(options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{options.path}: {error}") from error


def _read_weights(directory: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors, pickled = directory / f"{WEIGHTS}.safetensors", directory / f"{WEIGHTS}.bin"
    if tensors.is_file() and safetensors:
        try:
            return tensors, safetensors.load_file(tensors)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{tensors}: cannot be read ({error}); save or copy the model again") from error
    if pickled.is_file():
        weights = load_tensors(pickled)
        for key, value in weights.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise UserError(f"{pickled}: {key!r} is no weight, but {type(value).__name__}")
        return pickled, weights
    if tensors.is_file():
        raise UserError(f"{tensors}: reading it needs a package; run `pip install safetensors`")
    variants = sorted([*directory.glob(f"{WEIGHTS}.*.safetensors"), *directory.glob(f"{WEIGHTS}.*.bin")])
    hint = f"; copy {variants[0].name} to {WEIGHTS}{variants[0].suffix}" if variants else ""  # such as .fp16.bin
    raise UserError(f"{directory}: holds neither {tensors.name} nor {pickled.name}{hint}")


def _present_name(key: str) -> str:
    """Today's name of a weight; files of `diffusers` before 0.12 name the VAE's attention otherwise."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"mid_block.attentions.0.{old}.", f"mid_block.attentions.0.{new}.")
    return key


def _refuse_misfit(path: Path, expected: dict, found: dict) -> None:
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    for what, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        if keys:
            raise UserError(
                f"{path}: {what} {min(keys)} ({len(keys)} such); its config.json is another model's"
            )
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(found[key].shape)}, "
                f"but the config.json beside means {tuple(tensor.shape)}"
            )
        if not found[key].isfinite().all():
            raise UserError(f"{path}: {key} holds values that are no finite numbers; use an earlier model")
