"""An LDM run before its end: what it began with, and the model that a checkpoint of it holds.

    begun_with/     vae/ and users.json: copies, since the VAE's own run may go on and end in another VAE
    checkpoints/    step_00001000/ and so on: the moving average, with those and the run's config, is a whole model
"""

from dataclasses import replace
from pathlib import Path

from nets.condition import UserConditionEncoder
from nets.denoiser import UserDenoiser
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base.errors import UserError, out_of_memory, require
from train.base.files import LOAD_ERRORS
from train.base.sound import what_is_wrong
from train.config.schema import Config
from train.runs import model_folder
from train.runs.checkpoint import STATE, list_checkpoints, read_checkpoint
from train.runs.folder import CONFIG
from train.runs.users import USERS, load_users, save_users

BEGUN_WITH, CHECKPOINTS = "begun_with", "checkpoints"


def keep(run: Path, vae: AutoencoderKL, users: list[str]) -> None:
    """Write what the run begins with into its folder."""
    model_folder.replace(vae, own_vae(run))
    save_users(users, run / BEGUN_WITH)


def own_vae(run: Path) -> Path:
    """The run's copy of the VAE, which can be given as --vae_path."""
    return run / BEGUN_WITH / "vae"


def users_of(checkpoint: Path) -> list[str]:
    """UserError where the checkpoint is no LDM's."""
    folder = run_of(checkpoint) / BEGUN_WITH
    there = (folder / USERS).is_file()
    require(there, f"{checkpoint}: is no checkpoint of an LDM run with its {BEGUN_WITH}/ beside; give one of "
            "train.ldm (where an earlier version made it, start that training again, which adds what lacks)")
    return load_users(folder)


def is_checkpoint(folder: Path) -> bool:
    return (folder / STATE).is_file()


def run_of(model: Path) -> Path:
    """The folder of the run that made the model, which is its final_model or one of its checkpoints."""
    return model.parent.parent if is_checkpoint(model) else model.parent


def has_begun(run: Path) -> bool:
    """Whether a training here goes on from a checkpoint."""
    return bool(list_checkpoints(run / CHECKPOINTS))


def newest(run: Path) -> Path | None:
    """The last checkpoint of an LDM run, if there is one."""
    there = list_checkpoints(run / CHECKPOINTS) if (run / BEGUN_WITH / USERS).is_file() else []
    return there[-1] if there else None


def load(checkpoint: Path) -> tuple[AutoencoderKL, UserDenoiser, Config, list[str]]:
    """VAE, averaged denoiser, config and users' names; UserError where one of them is not there or does not fit."""
    run, users = run_of(checkpoint), users_of(checkpoint)
    vae = model_folder.load(own_vae(run), AutoencoderKL)
    config = replace(Config.read(run / CONFIG), vae=vae.config)
    denoiser = make_denoiser(config, len(users))
    try:
        weights = read_checkpoint(checkpoint).state["ema"]["model"]
        denoiser.load_state_dict(weights)
    except LOAD_ERRORS as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{checkpoint}: the model in it is another than {run / CONFIG} means") from error
    wrong = what_is_wrong(weights)
    require(not wrong, f"{checkpoint}: {wrong}; give an earlier checkpoint")
    return vae, denoiser.eval(), config, users


def make_denoiser(config: Config, num_users: int) -> UserDenoiser:
    unet = UNet2DConditionModel(replace(config.unet, sample_size=config.latent_side))
    return UserDenoiser(unet, UserConditionEncoder(replace(config.user_encoder, num_users=num_users)))
