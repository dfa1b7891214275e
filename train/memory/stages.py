"""What a stage runs, on the meta device: the project's own step, loss, optimizer, moving average and sampler.

One optimizer step is traced, and after it what the training loop runs now and then (validation, pictures).
What repeats without a new need for memory is cut short: a third micro-batch is like the second, a third
sampling step is like the second.
"""

from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from diffusion.schedule import make_schedule
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL
from train.base import processes as parallel
from train.base.randomness import generator
from train.data.latents import scaled_latents
from train.memory.components import built_on, ldm_models
from train.memory.run import Run, Standing, stand
from train.memory.scenario import Setting
from train.memory.trace import Trace
from train.memory.without_compiler import without_compiler
from train.runs.pictures import PICTURE_BATCH
from train.stages.denoising import denoising_loss, draw_training_window, draw_validation_window
from train.stages.generate import generate
from train.stages.vae_loss import Adversary, vae_losses

TRACED_SAMPLING_STEPS = 2


def trace(setting: Setting) -> Trace:
    """The storages of one step of this run, from its models on."""
    with parallel.alone():
        run = begin(setting)
        take_step(run, setting)
    return run.trace


def begin(setting: Setting) -> Run:
    with without_compiler():
        standing = _on_meta(setting.before_steps()) if setting.device == "meta" else _stand(setting)
        run = Run(setting, standing)
        if setting.device == "meta":
            alike = _apart_from_optimizers(setting.before_steps())
            standing.between, standing.windows = _known(alike), _known(alike.with_training(ema_on_cpu=False))
        return run


def take_step(run: Run, setting: Setting) -> None:
    """One step of this stage, and what the training loop runs between steps."""
    with without_compiler(), run:
        {"vae": _vae_step, "ldm": _ldm_step, "sample": _sampling}[setting.stage](setting, run)


def _stand(setting: Setting) -> Standing:
    """The stage's models on the setting's device, ready for a step."""
    config, device = setting.config, torch.device(setting.device)
    if setting.stage == "vae":
        with built_on(setting.device):
            vae = AutoencoderKL(replace(config.vae, scaling_factor=1.0))
            vgg16 = VGG16Distance() if config.vae_loss.perceptual_weight else None
            adversary = (
                Adversary(config.data.channels, config.vae_loss, config.vae_training.optimizer, device, "no")
                if config.vae_loss.adversarial_weight
                else None
            )
        parts = {"VAE": vae, "discriminator": adversary and adversary.discriminator, "VGG16": vgg16}
        parts = {name: part for name, part in parts.items() if part}
        return stand(setting, parts, vae, list(vae.parameters()), adversary)
    samples = setting.stage == "sample"
    vae, model = ldm_models(config, setting.users, not samples, setting.device)
    parts = {"VAE": vae, "UNet": model.unet, "user encoder": model.user_encoder}
    return stand(setting, parts, model, [] if samples else model.trained_parameters())


_on_meta = lru_cache(maxsize=8)(_stand)


@lru_cache(maxsize=8)
def _known(setting: Setting) -> dict:
    """What has been traced already of what these models run."""
    return {}


def _apart_from_optimizers(setting: Setting) -> Setting:
    return replace(setting.with_fused(False).with_training(shard_optimizer=False), processes=1)


def _ldm_step(setting: Setting, run: Run) -> None:
    config, training, standing = setting.config, setting.training, run.standing
    vae, model, device = standing.parts["VAE"], standing.model, run.device
    schedule, chance = make_schedule(config.schedule), generator(config.seed, "draws", 0)
    side = config.data.resolution // config.vae.downscale
    shape = (training.window * setting.processes, config.vae.latent_channels, side, side)  # all draw for all

    def latents(posterior: Tensor) -> Tensor:
        count, pixels = len(posterior), [config.data.resolution] * 2
        stored = (2, *shape[1:]) if config.latents.cache_latents else (config.data.channels, *pixels)
        return scaled_latents(vae, torch.zeros(count, *stored).to(device), posterior, partial(run.precision, "no"))

    def losses(part: slice) -> dict[str, Tensor]:
        x0 = latents(draws.posterior[part])
        return {"loss": denoising_loss(model, schedule, config.ldm_loss, x0, users[part], draws[part])}

    with run.trace.during("inputs"):
        draws = draw_training_window(
            shape, config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout, model.user_encoder,
            chance, device,
        )  # fmt: skip
        users = torch.zeros(len(draws.posterior), dtype=torch.long).to(device)
    learns = (setting.attention, training.mixed_precision, training.gradient_checkpointing)
    run.step(losses, (*learns, config.latents.cache_latents, training.batch_size, run.window))
    if not setting.validates:
        return
    averaged = standing.averaged.eval()

    def validate() -> dict:
        held_out = draw_validation_window((training.batch_size, *shape[1:]), 1, chance, device)
        x0, rows = latents(held_out.posterior), users[: training.batch_size]
        denoising_loss(averaged, schedule, config.ldm_loss, x0, rows, held_out)
        return {}

    def draw_pictures() -> dict:
        _generate(setting, averaged, vae)
        return {}

    key = (setting.attention, training.batch_size, config.latents.cache_latents)
    with run.trace.during("validation"), torch.no_grad():
        run.trace.again(standing.between, key, validate)
    with run.trace.during("pictures"):
        run.trace.again(standing.between, setting.attention, draw_pictures)


def _vae_step(setting: Setting, run: Run) -> None:
    config, training, standing = setting.config, setting.training, run.standing
    vae, adversary, vgg16 = standing.model, standing.adversary, standing.parts.get("VGG16")
    side = config.data.resolution // config.vae.downscale
    pixels = (config.data.channels, config.data.resolution, config.data.resolution)
    with run.trace.during("inputs"):
        images = torch.zeros(training.window * setting.processes, *pixels).to(run.device)
        noise = torch.zeros(len(images), config.vae.latent_channels, side, side).to(run.device)
        if adversary:
            adversary.begin_window()
            earlier = max(training.window - run.window, 0)  # by micro-batches that are not looked at
            adversary.fakes.append(torch.zeros(earlier, *pixels).to(run.device))
            for p in adversary.discriminator.parameters():  # which the step before has left
                p.grad = torch.zeros_like(p)
            run.trace.label_gradients(adversary.discriminator.parameters())

    def losses(part: slice) -> dict[str, Tensor]:
        scale = run.scaler.get_scale()
        return vae_losses(vae, images[part], noise[part], config.vae_loss, vgg16, adversary, scale)

    run.step(losses)
    if adversary:
        with run.trace.during("forward"):
            adversary.finish_window(images[: run.window], training.batch_size, run.autocast)
            run.trace.label_gradients(adversary.discriminator.parameters())
    if not setting.validates:
        return

    def reconstruct() -> dict:
        batch = torch.zeros(PICTURE_BATCH, *pixels).to(run.device)
        standing.averaged.decode(standing.averaged.encode(batch).mode())
        return {}

    with run.trace.during("pictures"), torch.no_grad():
        run.trace.again(standing.between, setting.attention, reconstruct)


def _sampling(setting: Setting, run: Run) -> None:
    with run.trace.during("sampling"):
        _generate(setting, run.standing.model, run.standing.parts["VAE"])


def _generate(setting: Setting, model: nn.Module, vae: AutoencoderKL) -> None:
    config = setting.config
    steps = min(config.sampling.steps, TRACED_SAMPLING_STEPS)
    sampling = replace(config.sampling, steps=steps, spacing="trailing", guidance_interval=None)
    batch = setting.training.batch_size if setting.stage == "sample" else PICTURE_BATCH
    wanted = [(0, number) for number in range(batch)]
    generate(model, vae, make_schedule(config.schedule), sampling, wanted, config.seed, batch)
