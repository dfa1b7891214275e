"""Train the UNet and the user encoder on the VAE's latents: `python -m train.ldm --config configs/demo.yaml`.

Ends with `final_model/`: unet/ condition_encoder/ vae/ scheduler/, averaged weights, the users' names, the split.
Shapes: B batch, Z h w latents.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion.schedule import make_schedule
from nets.checkpointing import set_checkpointing
from nets.condition import UserConditionEncoder
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from train.base import processes as parallel
from train.base.errors import UserError
from train.base.files import tensors_hash
from train.base.randomness import generator, window_rows
from train.config import cli
from train.config.schema import Config
from train.data.dataset import UserImages, draw_flips, load_images
from train.data.latents import LatentSource, latent_shape
from train.data.split import Split, evenly, fingerprint, save_split
from train.engine.device import MixedPrecision, autocast, grad_scaler, native_precision, pick_device
from train.engine.ema import EMA
from train.engine.micro_batch import MicroBatch
from train.engine.optim import learning_rate, make_adamw, set_learning_rate
from train.engine.step import StepResult, optimizer_step
from train.engine.trainer import Best, resume, total_steps, train
from train.memory.scenario import Setting
from train.memory.verify import watched
from train.runs import model_folder as pretrained
from train.runs.checkpoint import Unchanged
from train.runs.folder import SPLIT, locked, open_run, refuse_other_run, save_config, shared_split
from train.runs.pictures import PICTURE_BATCH, real_and_generated, save_picture, user_labels
from train.stages.denoising import UserDenoiser, denoising_loss, draw_training_window, draw_validation_window
from train.stages.generate import generate
from train.stages.preflight import (
    load_fitting_vae,
    plan_micro_batch,
    require_disk,
    require_sane_latents,
    warn_of_vanishing_signal,
)

VALIDATION_IMAGES = 256
GRID_USERS, GRID_IMAGES = 6, 4


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("ldm", __doc__.splitlines()[0], "ldm")
    args = parser.parse_args(argv)
    config = cli.read_config(args, "ldm")
    training = config.ldm_training
    folder = Path(training.output_dir)
    device = pick_device()
    precision = native_precision(device, training.mixed_precision)

    vae_folder = vae_folder_of(config)
    vae = load_vae(vae_folder, config)
    parallel.on_main(lambda: refuse_other_run(folder, config, "ldm"))
    warn_of_vanishing_signal(config.schedule)
    data = load_images(config.data)
    refuse_other_users(config, data)
    planned = replace(config, vae=vae.config)
    micro_batch = MicroBatch(training, plan_micro_batch(planned, "ldm", len(data.user_names), device))
    vae = vae.to(device)  # after the plan, which looks at a card that is still empty

    def choose_split() -> Split:
        split = shared_split(data, config.data, folder, vae_folder)
        require_sane_latents(vae, data, split.train, device)
        return split

    split = parallel.on_main(choose_split)
    torch.manual_seed(generator(config.seed, "weights", 1).initial_seed())
    model = build_denoiser(config, len(data.user_names), latent_shape(vae, data)[-1]).to(device)
    require_disk(training, model)
    with locked(folder):
        averaged = train_denoiser(config, folder, device, precision, micro_batch, vae, model, data, split)
        parallel.on_main(lambda: save_final_model(folder / "final_model", averaged, vae, config, data, split))
    print(f"LDM: model in {folder}/final_model, samples in {folder}/samples, curves in {folder}/curves.png")


def train_denoiser(
    config: Config, folder: Path, device: torch.device, precision: MixedPrecision, micro_batch: MicroBatch,
    vae: AutoencoderKL, model: UserDenoiser, data: UserImages, split: Split,
) -> UserDenoiser:  # fmt: skip
    """Train, or go on training; the averaged model."""
    training = config.ldm_training
    set_checkpointing(model, training.gradient_checkpointing)
    schedule = make_schedule(config.schedule)
    ema = EMA(model, training.ema_decay, training.ema_on_cpu)
    optimizer = make_adamw(model.trained_parameters(), training.optimizer, training.shard_optimizer)
    everyone = parallel.add_gradients(model.trained_parameters())
    scaler = grad_scaler(device, precision)
    half = partial(autocast, device, precision)
    steps = total_steps(len(split.train), training)
    print(f"LDM: {len(split.train)} images of {len(data.user_names)} users, {steps} steps on {device}")
    best = Best("validation_loss", min)
    inputs = Unchanged(
        VAE=tensors_hash(vae.state_dict().values(), repr(vae.config.scaling_factor)), data=fingerprint(data, split)
    )
    state = {"inputs": inputs, "model": model, "ema": ema, "optimizer": optimizer, "scaler": scaler,
             "micro_batch": micro_batch, "best": best}  # fmt: skip
    step = resume(training, steps, state)

    def begin() -> None:
        open_run(folder, config, "ldm")
        save_split(folder / SPLIT, split, data, config.data)

    parallel.on_main(begin)  # only now that nothing is refused any more
    source = LatentSource(vae, data, config.latents, folder / "latent_cache", device)

    def take_step(step: int) -> StepResult:
        rows = split.train[window_rows(config.seed, step, len(split.train), training.window)]
        chance = generator(config.seed, "draws", step)
        flips = draw_flips(len(rows), config.data, chance)
        draws = draw_training_window(
            (len(rows), *source.shape), config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout,
            model.user_encoder, chance, device,
        )  # fmt: skip
        users = data.user_index[rows].to(device)

        def losses(part: slice) -> dict[str, Tensor]:
            latents = source.latents(rows[part], flips[:, part], draws.posterior[part])
            return {"loss": denoising_loss(model, schedule, config.ldm_loss, latents, users[part], draws[part])}

        set_learning_rate(optimizer, learning_rate(training.optimizer, step, steps))
        result = micro_batch.fitting(lambda size: optimizer_step(
            losses, len(rows), size, model.trained_parameters(), optimizer, scaler, half,
            training.optimizer.max_grad_norm, everyone,
        ))  # fmt: skip
        if result.taken:
            ema.update(model)
        return result

    def validate(step: int) -> dict[str, float]:
        with ema.averaged(model) as averaged:
            write_samples(averaged, vae, config, data, folder / f"samples/{step:08d}.png")
            loss = micro_batch.fitting(lambda size: validation_loss(averaged, source, split, config, size))
        return {"validation_loss": loss}

    models = [vae, model] if training.ema_on_cpu else [vae, model, ema.model]
    setting = Setting(replace(config, vae=vae.config), "ldm", len(data.user_names))
    setting = setting.with_training(mixed_precision=precision)  # as it is computed here
    setting = setting.of_one_process(parallel.world_size(), micro_batch.size)
    take_step = watched(take_step, setting, device, models, [optimizer])
    train("LDM", training, steps, step, state, take_step, validate, best, ("loss", "validation_loss"), device)
    return ema.model


def vae_folder_of(config: Config) -> Path:
    return Path(config.latents.vae_path or Path(config.vae_training.output_dir) / "final_model")


def load_vae(folder: Path, config: Config) -> AutoencoderKL:
    """The frozen VAE. UserError where there is none, one whose training has not ended, or one that does not fit."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no VAE here; train one (python -m train.vae) or give its folder as --vae_path"
        )
    vae = load_fitting_vae(folder, config).requires_grad_(False)
    if vae.config.scaling_factor is None:
        raise UserError(f"{folder}: the VAE has no scaling_factor in its config.json; finish its training first")
    return vae


def refuse_other_users(config: Config, data: UserImages) -> None:
    if config.user_encoder.num_users not in (None, len(data.user_names)):
        raise UserError(
            f"{config.data.dir}: holds {len(data.user_names)} users, but user_encoder.num_users is "
            f"{config.user_encoder.num_users}; leave it out, or set it so"
        )


def build_denoiser(config: Config, num_users: int, latent_side: int) -> UserDenoiser:
    unet = UNet2DConditionModel(replace(config.unet, sample_size=latent_side))
    return UserDenoiser(unet, UserConditionEncoder(replace(config.user_encoder, num_users=num_users)))


@torch.no_grad()
def validation_loss(model: UserDenoiser, source: LatentSource, split: Split, config: Config, batch_size: int) -> float:
    """The loss on (at most 256) validation images, always with the same noise and timesteps."""
    rows = evenly(split.validation, VALIDATION_IMAGES)
    chance = generator(config.seed, "validation")
    shape = (len(rows), *source.shape)
    draws = draw_validation_window(shape, config.schedule.num_train_timesteps, chance, source.device)
    schedule, users = make_schedule(config.schedule), source.data.user_index[rows].to(source.device)
    no_flips = torch.zeros(2, len(rows), dtype=torch.bool)
    total = 0.0
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        latents = source.latents(rows[part], no_flips[:, part], draws.posterior[part])
        total += float(denoising_loss(model, schedule, config.ldm_loss, latents, users[part], draws[part]).sum())
    return total / len(rows)


def write_samples(model: UserDenoiser, vae: AutoencoderKL, config: Config, data: UserImages, path: Path) -> None:
    """A picture: for each of a few users real images, then generated ones, from the same noise every time."""
    users = evenly(torch.arange(len(data.user_names)), GRID_USERS).tolist()
    wanted = [(user, number) for user in users for number in range(GRID_IMAGES)]
    images = generate(model, vae, make_schedule(config.schedule), config.sampling, wanted, config.seed, PICTURE_BATCH)
    labels, rows = user_labels(data.user_names), []
    for position, user in enumerate(users):
        real = data.images[evenly((data.user_index == user).nonzero().flatten(), GRID_IMAGES)]
        made = images[position * GRID_IMAGES : (position + 1) * GRID_IMAGES]
        rows.append((labels[user], real, made))
    save_picture(real_and_generated(rows), path)


def save_final_model(
    folder: Path, model: UserDenoiser, vae: AutoencoderKL, config: Config, data: UserImages, split: Split
) -> None:
    save_config(config, folder)
    save_split(folder / "split.json", split, data, config.data)
    pretrained.save_users(data.user_names, folder)
    pretrained.save_schedule(config.schedule, folder / "scheduler")
    pretrained.save(vae, folder / "vae")
    pretrained.save(model.user_encoder, folder / "condition_encoder")
    pretrained.save(model.unet, folder / "unet")


if __name__ == "__main__":
    cli.run(main)
