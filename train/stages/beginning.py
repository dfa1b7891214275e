"""An LDM run that begins with the weights of another one: its UNet's, and the rows of the users that both know."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from nets.denoiser import UserDenoiser
from nets.vae import AutoencoderKL
from train.base.errors import require, some
from train.base.files import real_path, tensors_hash
from train.base.progress import say
from train.base.units import counted
from train.config.schema import Config
from train.runs import final_model, so_far


@dataclass(frozen=True, eq=False)
class Beginning:
    model: Path
    denoiser: UserDenoiser
    users: list[str]

    @torch.no_grad()
    def give(self, new: UserDenoiser, users: list[str]) -> str:
        """Put the weights into `new`, on the CPU, whose users these are; in words, what is taken and what is new.

        Users are the same whose names are; those of `new` that are not known here keep the rows that they have.
        """
        new.unet.load_state_dict(self.denoiser.unet.state_dict())
        theirs, ours = self.denoiser.user_encoder, new.user_encoder
        ours.unconditional.copy_(theirs.unconditional)
        rows = {name: row for row, name in enumerate(self.users)}
        kept = [name for name in users if name in rows]
        for name in kept:
            ours.embedding.weight[users.index(name)] = theirs.embedding.weight[rows[name]]
        fresh, gone = [name for name in users if name not in rows], [name for name in self.users if name not in users]
        said = f"begun from {self.model}: {counted(len(kept), 'user')} keep{'s' * (len(kept) == 1)} what was learned"
        said += f", {some(fresh)} {'is' if len(fresh) == 1 else 'are'} new" if fresh else ""
        return said + (f", {some(gone)} left out" if gone else "")


def model_to_begin_from(config: Config) -> Path | None:
    """The model of `init_from`; None where there is none, or the run has begun, and goes on from its own checkpoint.

    UserError where it is no LDM, or the one of the run itself.
    """
    model, run = config.ldm_training.init_from, Path(config.ldm_training.output_dir)
    if model is None:
        return None
    model = Path(model)
    own = real_path(run)
    require(own not in (real_path(model), *real_path(model).parents),
            f"init_from {model}: is of the run in {run}; a run that begins from it needs another output_dir")
    if so_far.has_begun(run):
        return None
    final_model.trained_users(model)
    return model


def open_beginning(config: Config, vae: AutoencoderKL) -> Beginning | None:
    """What a new run begins with. UserError where that is of another VAE, architecture or noise schedule."""
    model = model_to_begin_from(config)
    if model is None:
        if config.ldm_training.init_from:
            say(f"{config.ldm_training.output_dir}: the run there has begun, and goes on without loading "
                f"{config.ldm_training.init_from}", sys.stderr)  # fmt: skip
        return None
    trained = final_model.load_ldm(model, Config.read(final_model.config_path(model)))
    same = vae_hash(trained.vae) == vae_hash(vae)
    require(same, f"init_from {model}: its UNet knows the latents of another VAE; give its own, {vae_of(model)}, as "
            "--vae_path")
    differing = list(_differing(config, trained))
    require(not differing, f"init_from {model}: is another model ({some(differing)}); set that as it is there, or "
            "begin with random weights")
    return Beginning(model, trained.denoiser, trained.users)


def vae_hash(vae: AutoencoderKL) -> str:
    """The same for the same weights and scale: then a UNet that knows the latents of one knows those of the other."""
    return tensors_hash(vae.state_dict().values(), repr(vae.config.scaling_factor))


def vae_of(model: Path) -> Path:
    """The VAE that an LDM, or a checkpoint's, was trained with."""
    return so_far.own_vae(so_far.run_of(model)) if so_far.is_checkpoint(model) else model / "vae"


def _differing(config: Config, trained: final_model.TrainedLDM) -> Iterator[str]:
    """What the network and its task are, where that is not the same; a phrase for each key."""
    unet, encoder = trained.denoiser.unet.config, trained.denoiser.user_encoder.config
    for section, its, ours in (
        ("unet", replace(unet, sample_size=None, num_heads=unet.heads),
         replace(config.unet, sample_size=None, num_heads=config.unet.heads)),
        ("user_encoder", replace(encoder, num_users=None, dropout=0.0),
         replace(config.user_encoder, num_users=None, dropout=0.0)),
        ("schedule", trained.schedule.config, config.schedule),
    ):  # fmt: skip
        now = asdict(ours)
        for key, value in asdict(its).items():
            if value != now[key]:
                yield f"{section}.{key} is {value!r} there, {now[key]!r} here"
