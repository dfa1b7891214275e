"""The folder `final_model` that a run leaves at its end; only this module writes and reads it.

    VAE:  config.json, weights, latent_statistics.json             config.yaml, split.json, README.md
    LDM:  unet/ vae/ scheduler/ condition_encoder/ users.json      config.yaml, split.json, README.md

Models are folders that `diffusers` opens (train/runs/model_folder.py). The whole folder is replaced at once; of the
model card, README.md, what is written by hand stays.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusion.schedule import Schedule, make_schedule
from nets.condition import UserConditionEncoder
from nets.denoiser import UserDenoiser
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import require
from train.base.files import write_json
from train.base.folders import read_as_one
from train.config.schema import Config
from train.data.dataset import UserImages
from train.data.split import Split, save_split
from train.runs import model_folder, so_far
from train.runs.card import write_card
from train.runs.folder import CONFIG, SPLIT, save_config
from train.runs.model_folder import replacing_model
from train.runs.users import USERS, load_users, save_users

NAME = "final_model"


# ---- VAE


def save_vae(
    folder: Path, vae: AutoencoderKL, statistics: dict, config: Config, data: UserImages, split: Split
) -> None:
    """Save a VAE; `statistics` are of the training images' latents, whose scale `vae.config` has already."""
    with replacing_model(folder) as new:
        save_split(new / SPLIT, split, data, config.data)
        write_json(new / "latent_statistics.json", statistics)
        save_config(config, new)
        model_folder.save(vae, new)
        write_card(new, folder, "vae", config, data, split)


def load_vae(folder: Path, config: Config) -> AutoencoderKL:
    """A trained VAE; UserError where it does not fit the UNet or the images."""
    with read_as_one(folder):
        model = model_folder.load(folder, AutoencoderKL)
    vae, side = model.config, config.data.resolution
    for ours, theirs, what in (
        (config.unet.latent_channels, vae.latent_channels, "unet.latent_channels"),
        (config.data.channels, vae.image_channels, "data.channels"),
    ):
        require(ours == theirs, f"{folder}: the VAE has {theirs} channels where {what} is {ours}")
    fits = side % vae.downscale == 0
    require(fits, f"{folder}: the VAE divides each side by {vae.downscale}, which data.resolution {side} is not a "
            "multiple of")
    return model


def load_frozen_vae(folder: Path, config: Config) -> AutoencoderKL:
    """The VAE of an LDM. UserError where there is none, or its training has not ended."""
    require(folder.is_dir(),
            f"{folder}: there is no VAE here; train one (python -m train.vae) or give its folder as --vae_path")
    vae = load_vae(folder, config).requires_grad_(False)
    require(vae.config.scaling_factor is not None,
            f"{folder}: the VAE has no scaling_factor in its config.json; finish its training first")
    return vae


# ---- LDM


@dataclass(frozen=True)
class TrainedLDM:
    """Models in evaluation mode, on the CPU until they are moved."""

    vae: AutoencoderKL
    denoiser: UserDenoiser
    schedule: Schedule
    users: list[str]
    """Their names, in the order of their indices."""

    def to(self, device: torch.device) -> "TrainedLDM":
        self.vae.to(device)
        self.denoiser.to(device)
        return self


def save_ldm(
    folder: Path, denoiser: UserDenoiser, vae: AutoencoderKL, config: Config, data: UserImages, split: Split
) -> None:
    with replacing_model(folder) as new:
        save_config(config, new)
        save_split(new / SPLIT, split, data, config.data)
        save_users(data.user_names, new)
        model_folder.save_schedule(config.schedule, new / "scheduler")
        model_folder.save(vae, new / "vae")
        model_folder.save(denoiser.user_encoder, new / "condition_encoder")
        model_folder.save(denoiser.unet, new / "unet")
        write_card(new, folder, "ldm", replace(config, vae=vae.config), data, split)


def load_ldm(folder: Path, config: Config) -> TrainedLDM:
    """A trained LDM, or that of a checkpoint; UserError where its parts do not go together, or with the config."""
    with read_as_one(folder):
        found = _of_checkpoint(folder) if so_far.is_checkpoint(folder) else _of_folder(folder)
    vae, unet, encoder = found.vae, found.denoiser.unet, found.denoiser.user_encoder
    schedule, users = found.schedule, found.users
    require(vae.config.scaling_factor is not None,
            f"{folder}/vae/config.json: has no scaling_factor, so the VAE's training has not ended")
    for one, its, other, others in (
        ("vae's latent_channels", vae.config.latent_channels, "unet's in_channels", unet.config.latent_channels),
        ("vae's in_channels", vae.config.image_channels, "data.channels", config.data.channels),
        ("condition_encoder's dim", encoder.config.dim, "unet's cross_attention_dim", unet.config.cross_attention_dim),
        ("condition_encoder's num_users", encoder.config.num_users, "number of names in users.json",
         len(users)),
        ("unet's sample_size", unet.config.sample_size, "data.resolution divided by the vae's downscaling",
         config.data.resolution / vae.config.downscale),
    ):  # fmt: skip
        require(its == others, f"{folder}: the {one} is {its}, but the {other} is {others:g}; they do not go together")
    require_steps(folder, config, schedule)
    return found


def require_steps(folder: Path, config: Config, schedule: Schedule) -> None:
    """UserError where the config asks for more steps of sampling than the model's schedule has timesteps."""
    steps, timesteps = config.sampling.steps, schedule.config.num_train_timesteps
    require(steps <= timesteps, f"{folder}/scheduler: sampling.steps is {steps}, but the model was trained with "
            f"{timesteps} timesteps; take fewer --steps")


def _of_folder(folder: Path) -> TrainedLDM:
    vae = model_folder.load(folder / "vae", AutoencoderKL)
    unet = model_folder.load(folder / "unet", UNet2DConditionModel)
    encoder = model_folder.load(folder / "condition_encoder", UserConditionEncoder)
    schedule = make_schedule(model_folder.load_schedule(folder / "scheduler"))
    return TrainedLDM(vae, UserDenoiser(unet, encoder).eval(), schedule, load_users(folder))


def _of_checkpoint(folder: Path) -> TrainedLDM:
    vae, denoiser, config, users = so_far.load(folder)
    return TrainedLDM(vae, denoiser, make_schedule(config.schedule), users)


def trained_users(folder: Path) -> list[str]:
    """The users' names of an LDM, or of a checkpoint's. UserError where the folder holds none."""
    if so_far.is_checkpoint(folder):
        return so_far.users_of(folder)
    ended = [place for place in (folder / NAME, folder / "ldm" / NAME) if (place / USERS).is_file()]
    begun = filter(None, map(so_far.newest, (folder, folder / "ldm", folder.parent)))
    near = next(iter([*ended, *begun]), None)
    hint = f" (did you mean {near}?)" if near else ""
    require((folder / USERS).is_file(), f"{folder}: there is no trained LDM here{hint}; run make train-ldm, or give "
            "the final_model folder of one, or a checkpoint")
    return load_users(folder)


def config_path(folder: Path) -> Path:
    """The config of the run that made the model."""
    return _nearest(folder, CONFIG)


def split_path(folder: Path) -> Path:
    """The split of the run that made the model."""
    return _nearest(folder, SPLIT)


def _nearest(folder: Path, name: str) -> Path:
    """A file of the model, or of what it is a part of: a checkpoint of its run, a VAE of an LDM."""
    whole = (folder / USERS).is_file()
    places = [place / name for place in ([folder] if whole else (folder, folder.parent, folder.parent.parent))]
    return next((place for place in places if place.is_file()), places[0])
