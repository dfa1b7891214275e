"""The second stage: a UNet and a user encoder, trained to denoise the VAE's latents.

Shapes: B batch, Z h w latents, L context tokens, D their width.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.loss import Draws, diffusion_loss, draw
from diffusion.schedule import ScheduleConfig, make_schedule
from nets.checkpointing import set_checkpointing
from nets.denoiser import UserDenoiser
from nets.vae import AutoencoderKL
from train.base.errors import UserError, require
from train.base.processes import on_main
from train.base.progress import say
from train.base.randomness import generator
from train.base.units import MiB
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.data.dataset import UserImages, draw_flips, evenly, load_images
from train.data.images import save_picture
from train.data.latents import LatentSource, cached_moments, require_sane_latents
from train.data.split import Split, fingerprint, numbers_of_recordings
from train.data.store import Rows
from train.engine.compiling import compile_blocks
from train.engine.log import METRICS, read_lines
from train.engine.micro_batch import MicroBatch
from train.engine.stage import VALIDATION_IMAGES, Stage
from train.engine.step import make_learner
from train.runs import final_model, so_far
from train.runs.checkpoint import Stateful
from train.runs.folder import SPLIT, shared_split
from train.runs.pictures import PICTURE_BATCH, user_comparison
from train.runs.so_far import make_denoiser
from train.stages import memorising
from train.stages.beginning import Beginning, model_to_begin_from, open_beginning, vae_hash, vae_of
from train.stages.copies import Originals
from train.stages.generate import generate

SAMPLED_USERS, SAMPLES_PER_USER = 6, 4
ORIGINALS = 128 * MiB  # of training images, in which copies are looked for at a validation
MAX_FACTOR = 1000  # between the errors of predicted noise and of the x0 computed from it


@dataclass(frozen=True, eq=False)
class LDMBatch:
    """A batch of images with all of its random numbers, from which micro-batches take slices."""

    rows: Tensor  # (B,): rows of the data set
    flips: Tensor  # (2, B) bool: which are mirrored, which upended
    users: Tensor  # (B,): the users' indices
    diffusion: Draws  # timesteps, noise, and which conditions are dropped
    latent_noise: Tensor  # (B, Z, h, w), standard normal: samples the images' latents
    keep: Tensor | None  # (B, L*D) bool: the components of the condition that dropout keeps; None: all


class LDMStage(Stage):
    name, title = "ldm", "LDM"
    metric, better = "validation_loss", min
    curves = (("loss",), ("training_loss", "validation_loss"))
    pictures = "samples"

    def __init__(self, config: Config, data: UserImages, vae: AutoencoderKL, beginning: Beginning | None = None):
        """With a `beginning`, its weights take the place of random ones, and are given back when that is done."""
        self.config, self.data, self.vae, self.beginning = config, data, vae, beginning
        self.begun = ""  # with whose weights, in words
        self.schedule = make_schedule(config.schedule)
        self.warned = False  # that more steps only learn images by heart

    @classmethod
    def open(cls, config: Config) -> "LDMStage":
        vae = open_vae(config)
        warn_of_vanishing_signal(config.schedule)
        data = load_images(config.data)
        require_users(config, data)
        return cls(config, data, vae, open_beginning(config, vae))

    @property
    def actual_config(self) -> Config:
        return replace(self.config, vae=self.vae.config)

    def build(self, device: torch.device, precision: MixedPrecision) -> None:
        config, self.device = self.config, device
        self.vae.to(device)
        torch.manual_seed(generator(config.seed, "weights", 1).initial_seed())
        self.model = make_denoiser(self.actual_config, len(self.data.user_names))
        if self.beginning:
            self.begun = self.beginning.give(self.model, self.data.user_names)
            self.beginning = None
        self.model.to(device)
        set_checkpointing(self.model, self.training.gradient_checkpointing)
        if self.training.compile and device.type != "meta":  # where the account of memory looks at the plain model
            compile_blocks(self.model, device)
        parameters, training = self.model.trained_parameters(), self.training
        self.learner = make_learner(
            parameters, training.optimizer, training.shard_optimizer, device, precision, training.lean_activations
        )
        self.use_latents(None)

    def choose_split(self, folder: Path) -> None:
        def choose() -> Split:
            split = split_for(self.config, self.data)
            with naming_the_own_vae(self.config):
                require_sane_latents(self.vae, self.data, split.train, self.device)
            return split

        self.split = on_main(choose)

    def begin(self, folder: Path) -> None:
        """Keep the VAE with the run; encode every image of the training recordings, if the config says so."""
        if self.begun:
            print(f"{self.title}: {self.begun}")
        on_main(lambda: so_far.keep(folder, self.vae, self.data.user_names))
        if self.config.latents.cache_latents:
            rows = self.split.training
            moments = cached_moments(self.vae, self.data, rows, folder / "latent_cache", self.device)
            self.use_latents(moments, rows=rows)

    def use_latents(
        self, moments: Tensor | Rows | None, float32: Callable[[], AbstractContextManager] | None = None,
        rows: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Use cached moments (R, 2, Z, h, w) of the images `rows` (R,), or of the first R.

        None: encode in each step, in the context `float32`.
        """
        self.source = LatentSource(self.vae, self.data, moments, self.device, float32, rows)

    # ---- one optimizer step

    def draw(self, step: int, rows: Tensor) -> LDMBatch:
        rng = generator(self.config.seed, "draws", step)
        flips = draw_flips(len(rows), self.config.data, rng)
        diffusion, latent_noise = self._draw_noise(len(rows), self.config.ldm_loss.condition_dropout, rng)
        keep = self.model.user_encoder.draw_keep(len(rows), rng).to(self.device)
        return LDMBatch(rows, flips, self._users(rows), diffusion, latent_noise, keep)

    def losses(self, batch: LDMBatch, part: slice, model: UserDenoiser | None = None) -> dict[str, Tensor]:
        """The losses of `model`, such as the moving average; without it, of the model that is trained."""
        model, draws = model or self.model, batch.diffusion[part]
        latents = self.source.latents(batch.rows[part], batch.flips[:, part], batch.latent_noise[part])  # B Z h w
        keep = None if batch.keep is None else batch.keep[part]
        condition = model.user_encoder(batch.users[part], draws.dropped, keep)  # B L D
        config, schedule = self.config.ldm_loss, self.schedule
        return {"loss": diffusion_loss(model.unet, schedule, config, latents, condition, draws.t, draws.noise)}  # B

    def _draw_noise(self, count: int, condition_dropout: float, rng: torch.Generator) -> tuple[Draws, Tensor]:
        shape = (count, *self.source.shape)
        diffusion = draw(shape, self.config.schedule.num_train_timesteps, condition_dropout, rng, self.device)
        return diffusion, torch.randn(shape, generator=rng).to(self.device)

    def _users(self, rows: Tensor) -> Tensor:
        return self.data.user_index[rows].to(self.device)

    # ---- validation and export

    def validate(self, averaged: UserDenoiser, step: int, micro_batch: MicroBatch) -> dict[str, float]:
        """Losses on validation images and on as many training images, and the share of samples that are copies."""
        copies = self.write_samples(averaged, self.picture_of(step))
        while (losses := micro_batch.attempt(self.validation_losses, averaged, micro_batch.size)) is None:
            micro_batch.halve()
        metrics = {**losses, "copies": copies}
        self.warn_of_memorising({"step": step, **metrics})
        return metrics

    def validation_losses(self, model: UserDenoiser, batch_size: int) -> dict[str, float]:
        """Mean losses on at most 256 validation images, and on as many training images."""
        rows = evenly(self.split.validation, VALIDATION_IMAGES)
        sides = {"validation_loss": rows, "training_loss": evenly(self.split.train, len(rows))}
        return {name: self.mean_loss(model, rows, batch_size) for name, rows in sides.items()}

    @torch.no_grad()
    def mean_loss(self, model: UserDenoiser, rows: Tensor, batch_size: int) -> float:
        """The mean loss on these images; of as many others, it is with the same noise and timesteps."""
        batch = self.draw_validation(rows, self._users(rows))
        parts = (slice(start, start + batch_size) for start in range(0, len(rows), batch_size))
        return sum(float(self.losses(batch, part, model)["loss"].sum()) for part in parts) / len(rows)

    def draw_validation(self, rows: Tensor, users: Tensor) -> LDMBatch:
        """The same batch at every step; no condition is dropped, and no image is flipped."""
        diffusion, latent_noise = self._draw_noise(len(rows), 0.0, generator(self.config.seed, "validation"))
        no_flips = torch.zeros(2, len(rows), dtype=torch.bool)
        return LDMBatch(rows, no_flips, users, diffusion, latent_noise, keep=None)

    def write_samples(self, model: UserDenoiser, path: Path) -> float:
        """Save a picture of real and generated images of a few users, from the same noise every time.

        Returns the share of these generated images that are accused of being copies of training images.
        """
        data, config = self.data, self.config
        wanted = [(user, number) for user in self.sampled_users.tolist() for number in range(SAMPLES_PER_USER)]
        images = generate(model, self.vae, self.schedule, config.sampling, wanted, config.seed, PICTURE_BATCH)
        rows, asked_for = self.split.training, torch.tensor([user for user, _ in wanted])
        save_picture(user_comparison(data, rows, images, asked_for, SAMPLED_USERS, SAMPLES_PER_USER), path)
        return float(self.originals.find_copies(images, asked_for).accused.float().mean())

    def show(self, averaged: UserDenoiser, step: int, checkpoint: Path) -> str:
        self.write_samples(averaged, self.picture_of(step))
        return f"samples in {self.picture_of(step)}, and python -m train.sample --model {checkpoint} makes others"

    @property
    def sampled_users(self) -> Tensor:
        return evenly(torch.arange(len(self.data.user_names)), SAMPLED_USERS)

    @cached_property
    def originals(self) -> Originals:
        """The training images of the users of whom samples are drawn; of many large ones, some of each user's."""
        data, train = self.data, self.split.train
        most = ORIGINALS // (len(self.sampled_users) * data.images.shape[1:].numel())
        own = (train[data.user_index[train] == user] for user in self.sampled_users)
        rows = torch.cat([evenly(its, max(most, 1)) for its in own])
        recordings = numbers_of_recordings(data, rows.tolist(), self.config.data)
        return Originals(data.images[rows], data.user_index[rows], recordings)

    def warn_of_memorising(self, validation: memorising.Validation) -> None:
        """Say so, once, when images are learned by heart. `validation` is the newest, which is not in the log yet."""
        sentence = memorising.warning([*self.validations(), validation])
        if sentence and not self.warned:
            say(f"{self.title}: {sentence}", sys.stderr)
            self.warned = True

    def validations(self) -> list[memorising.Validation]:
        return memorising.validations(read_lines(self.folder / METRICS))

    def export(self, averaged: UserDenoiser) -> str:
        folder, model = self.folder, self.folder / final_model.NAME
        final_model.save_ldm(model, averaged, self.vae, self.config, self.data, self.split)
        said = f"LDM: model in {model}, samples and curves in {folder}/progress.html"
        sentence = memorising.warning(self.validations())
        return f"{said}\n{self.title}: {sentence}" if sentence else said

    @property
    def folder(self) -> Path:
        return Path(self.training.output_dir)

    # ---- models, learners and checkpoints

    def models(self) -> list[nn.Module]:
        return [self.vae, self.model]

    def state(self) -> dict[str, Stateful]:
        return {"model": self.model}

    def inputs(self) -> dict[str, str]:
        return {"VAE": vae_hash(self.vae), "data": fingerprint(self.data, self.split)}

    def instead(self) -> dict[str, str]:
        own = own_vae(self.config)
        return {"VAE": f"give {own}, its copy, as --vae_path"} if own else {}


def vae_folder(config: Config) -> Path:
    return Path(config.latents.vae_path or Path(config.vae_training.output_dir) / final_model.NAME)


def open_vae(config: Config) -> AutoencoderKL:
    with naming_the_own_vae(config):
        return final_model.load_frozen_vae(vae_folder(config), config)


def split_for(config: Config, data: UserImages) -> Split:
    """The split of the run in the config's output_dir, else that of its VAE, and of the LDM from which it begins."""
    own, model = Path(config.ldm_training.output_dir) / SPLIT, model_to_begin_from(config)
    begun_from = model and final_model.split_path(model)
    return shared_split(data, config.data, own, final_model.split_path(vae_folder(config)), begun_from)


def own_vae(config: Config) -> Path | None:
    """The copy of its VAE that the run in the config's output_dir has, unless that is what is given."""
    run = Path(config.ldm_training.output_dir)
    copies = [so_far.own_vae(run), run / final_model.NAME / "vae"]  # the second also in runs of before
    there = (copy for copy in copies if copy.is_dir() and copy.resolve() != vae_folder(config).resolve())
    return next(there, None)


@contextmanager
def naming_the_own_vae(config: Config) -> Iterator[None]:
    """While entered, a VAE that does not fit is an error that says where the run's own one, or a new run's, is."""
    try:
        yield
    except UserError as error:
        own, model = own_vae(config), model_to_begin_from(config)
        if own:
            raise UserError(f"{error} (the run's copy of the VAE that it began with is {own})") from error
        if model and vae_folder(config) != vae_of(model):
            raise UserError(f"{error} (to begin from {model} takes its VAE, {vae_of(model)})") from error
        raise


def require_users(config: Config, data: UserImages) -> None:
    asked, there = config.user_encoder.num_users, len(data.user_names)
    require(
        asked in (None, there),
        f"{config.data.dir}: holds {there} users, but user_encoder.num_users is {asked}; leave it out, or set it so",
    )


def warn_of_vanishing_signal(config: ScheduleConfig) -> None:
    """Warn on stderr where the network predicts noise and the last timestep has hardly any signal left.

    There x0 = (x - sigma * noise) / alpha multiplies the network's error: by 158 with the schedule of DDPM, by 20,000
    with the cosine schedule.
    """
    factor = make_schedule(config).level(-1).noise_ratio
    if config.prediction == "noise" and factor > MAX_FACTOR:
        print(
            f"warning: schedule.kind {config.kind} with schedule.prediction noise: at the last timestep the network's "
            f"error is multiplied by {factor:,.0f}, which spoils the samples of every sampler but ddpm; set "
            "schedule.prediction to velocity",
            file=sys.stderr,
        )
