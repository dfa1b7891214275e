"""What a stage runs, on the meta device: the project's own step, loss, optimizer, moving average and sampler.

One optimizer step is traced, and after it what the training loop runs now and then (validation, pictures).
What repeats without a new need for memory is cut short: a third micro-batch is like the second, a third
sampling step is like the second. AdamW's state, born in the first step of a run, is there beforehand.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.schedule import make_schedule
from nets.checkpointing import set_checkpointing
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL
from train.config import Config
from train.denoising import denoising_loss, draw_training_window, draw_validation_window
from train.device import DTYPES
from train.ema import EMA
from train.generate import generate
from train.loop import TrainingConfig
from train.memory.card import Attention, Card
from train.memory.components import Stage, build_denoiser, built_on
from train.memory.shapes import without_compiler
from train.memory.trace import Trace
from train.optim import OptimConfig, make_adamw
from train.pictures import PICTURE_BATCH
from train.randomness import generator
from train.step import optimizer_step
from train.vae_loss import Adversary, vae_losses

TRACED_MICRO_BATCHES, TRACED_SAMPLING_STEPS = 2, 2


@dataclass(frozen=True)
class Setting:
    """A run, as far as its memory depends on it."""

    config: Config
    stage: Stage = "ldm"
    users: int = 31
    attention: Attention = "efficient"
    optimizer: Literal["foreach", "fused"] = "foreach"
    ranks: int = 1
    """Cards among which the optimizer's state is divided."""
    ema_on_card: bool = True
    validates: bool = True
    """Whether what the training loop runs between steps is traced too."""
    device: str = "meta"
    """"cpu" runs it in earnest: what a test holds the trace against."""

    @property
    def training(self) -> TrainingConfig:
        return self.config.vae_training if self.stage == "vae" else self.config.ldm_training

    def with_training(self, **changes) -> "Setting":
        section = "vae_training" if self.stage == "vae" else "ldm_training"
        return replace(self, config=replace(self.config, **{section: replace(self.training, **changes)}))


def trace(setting: Setting) -> Trace:
    """The storages of one step of this run, from its models on."""
    with without_compiler():
        return {"vae": _trace_vae, "ldm": _trace_ldm, "sample": _trace_sampling}[setting.stage](setting)


def _trace_ldm(setting: Setting) -> Trace:
    config, training = setting.config, setting.training
    with built_on(setting.device):
        vae = AutoencoderKL(replace(config.vae, scaling_factor=1.0)).requires_grad_(False)
        model = build_denoiser(config, setting.users)
    schedule, device = make_schedule(config.schedule), torch.device(setting.device)
    side = config.data.resolution // config.vae.downscale
    shape = (training.window, config.vae.latent_channels, side, side)
    parts = {"VAE": vae, "UNet": model.unet, "user encoder": model.user_encoder}
    run = _Training(setting, parts, model, model.trained_parameters())
    chance = generator(config.seed, "draws", 0)

    def latents(part: slice, posterior: Tensor) -> Tensor:
        """As LatentSource.latents gives them."""
        count = len(posterior)
        if config.latents.cache_latents:
            mean, std = torch.zeros(count, 2, *shape[1:]).to(setting.device).unbind(1)
        else:
            with run.card.autocast(None), torch.no_grad():
                images = torch.zeros(count, config.data.channels, *[config.data.resolution] * 2).to(setting.device)
                distribution = vae.encode(images)
            mean, std = distribution.mean, distribution.std
        return (mean + std * posterior) * vae.config.scaling_factor

    with run.trace:
        run.begin()
        with run.trace.during("inputs"):
            draws = draw_training_window(
                shape, config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout, model.user_encoder,
                chance, device,
            )  # fmt: skip
            users = torch.zeros(training.window, dtype=torch.long).to(setting.device)

        def losses(part: slice) -> dict[str, Tensor]:
            x0 = latents(part, draws.posterior[part])
            return {"loss": denoising_loss(model, schedule, config.ldm_loss, x0, users[part], draws[part])}

        run.step(losses)
        if not setting.validates:
            return run.trace
        with run.trace.during("validation"), torch.no_grad():
            averaged = run.ema.model if run.ema else model.eval()
            held_out = draw_validation_window((training.batch_size, *shape[1:]), 1, chance, device)
            x0, rows = latents(slice(None), held_out.posterior), users[: training.batch_size]
            denoising_loss(averaged, schedule, config.ldm_loss, x0, rows, held_out)
            del held_out, x0, rows
        with run.trace.during("pictures"):
            _generate(setting, averaged, vae)
    return run.trace


def _trace_vae(setting: Setting) -> Trace:
    config, training = setting.config, setting.training
    with built_on(setting.device):
        vae = AutoencoderKL(config.vae)
        adversary = (
            Adversary(config.data.channels, config.vae_loss, training.optimizer, torch.device(setting.device), "no")
            if config.vae_loss.adversarial_weight
            else None
        )
        vgg16 = VGG16Distance() if config.vae_loss.perceptual_weight else None
    parts = {"VAE": vae, "discriminator": adversary and adversary.discriminator, "VGG16": vgg16}
    run = _Training(setting, {k: m for k, m in parts.items() if m}, vae, list(vae.parameters()))
    side = config.data.resolution // config.vae.downscale
    if adversary:
        adversary.optimizer = _adamw(list(adversary.discriminator.parameters()), training.optimizer, setting.optimizer)
        adversary.scaler = torch.amp.GradScaler("cpu", enabled=run.scaler.is_enabled())

    with run.trace:
        run.begin()
        if adversary:
            begin_optimizer(adversary.optimizer, run.trace)
        with run.trace.during("inputs"):
            pixels = (config.data.channels, config.data.resolution, config.data.resolution)
            images = torch.zeros(training.window, *pixels).to(setting.device)
            noise = torch.zeros(training.window, config.vae.latent_channels, side, side).to(setting.device)

        def losses(part: slice) -> dict[str, Tensor]:
            scale = run.scaler.get_scale()
            return vae_losses(vae, images[part], noise[part], config.vae_loss, vgg16, adversary, scale)

        run.step(losses)
        if adversary:
            with run.trace.during("forward"):
                learned = images[: run.window]
                adversary.finish_window(learned, training.batch_size, run.autocast)
                run.trace.label_gradients(adversary.discriminator.parameters())
        if not setting.validates:
            return run.trace
        with run.trace.during("pictures"), torch.no_grad():
            averaged = run.ema.model if run.ema else vae
            batch = torch.zeros(PICTURE_BATCH, config.data.channels, *[config.data.resolution] * 2).to(setting.device)
            averaged.decode(averaged.encode(batch).mode())
            del batch
    return run.trace


def _trace_sampling(setting: Setting) -> Trace:
    with built_on(setting.device):
        vae = AutoencoderKL(replace(setting.config.vae, scaling_factor=1.0)).requires_grad_(False)
        model = build_denoiser(setting.config, setting.users).eval().requires_grad_(False)
    parts = {"VAE": vae, "UNet": model.unet, "user encoder": model.user_encoder}
    trace = Trace(parts, Card(setting.attention), setting.device)
    with trace:
        trace.label_weights()
        with trace.during("sampling"):
            _generate(setting, model, vae)
    return trace


def _generate(setting: Setting, model: nn.Module, vae: AutoencoderKL) -> None:
    config = setting.config
    steps = min(config.sampling.steps, TRACED_SAMPLING_STEPS)
    sampling = replace(config.sampling, steps=steps, spacing="trailing", guidance_interval=None)
    batch = setting.training.batch_size if setting.stage == "sample" else PICTURE_BATCH
    wanted = [(0, number) for number in range(batch)]
    generate(model, vae, make_schedule(config.schedule), sampling, wanted, config.seed, batch)


class _Training:
    """One optimizer step of a model, as train/ldm.py and train/vae.py take it."""

    def __init__(self, setting: Setting, parts: dict[str, nn.Module], model: nn.Module, trained: list[nn.Parameter]):
        training = self.training = setting.training
        self.model, self.trained = model, trained
        self.half = None if training.mixed_precision == "no" else DTYPES[training.mixed_precision]
        set_checkpointing(model, training.gradient_checkpointing)
        self.ema = EMA(model, training.ema_decay) if setting.ema_on_card else None
        self.optimizer = _adamw(_share(trained, setting.ranks), training.optimizer, setting.optimizer)
        # The scaler's few numbers stand beside the loss, wherever that is; "cuda" would refuse to work without.
        self.scaler = torch.amp.GradScaler("cpu", enabled=training.mixed_precision == "fp16")
        self.card = Card(setting.attention)
        self.trace = Trace({**parts, "EMA": self.ema.model} if self.ema else parts, self.card, setting.device)
        self.window = training.batch_size * min(training.gradient_accumulation_steps, TRACED_MICRO_BATCHES)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with self.trace.during("forward"):
            with self.card.autocast(self.half):
                yield
            self.trace.end_forward()
        self.trace.phase = "backward"

    def begin(self) -> None:
        self.trace.label_weights()
        begin_optimizer(self.optimizer, self.trace)

    def step(self, losses: Callable[[slice], dict[str, Tensor]]) -> None:
        with self.trace.during("forward"):
            optimizer_step(
                losses, self.window, self.training.batch_size, self.trained, self.optimizer, self.scaler,
                self.autocast, self.training.optimizer.max_grad_norm,
            )  # fmt: skip
        self.trace.label_gradients(self.trained)
        if self.ema:
            with self.trace.during("EMA"):
                self.ema.update(self.model)


def _share(parameters: list[nn.Parameter], ranks: int) -> list[nn.Parameter]:
    """What the first of `ranks` cards updates, when each parameter is given to the card that has least."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for p in sorted(parameters, key=lambda p: -p.numel()):
        rank = loads.index(min(loads))
        shares[rank].append(p)
        loads[rank] += p.numel()
    return shares[0]


def _adamw(parameters: list[nn.Parameter], config: OptimConfig, kind: str) -> torch.optim.Optimizer:
    """train/optim.py's optimizer, in the form that torch takes by itself on a card only."""
    optimizer = make_adamw(parameters, config)
    if kind == "fused":
        return FusedAdamW(parameters)
    optimizer.param_groups[0]["foreach"] = True
    return optimizer


class FusedAdamW(torch.optim.Optimizer):
    """The memory of torch.optim.AdamW(fused=True), which refuses the meta device: state, and no temporaries."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, {})

    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None and p not in self.state:
                step = torch.empty((), device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}


def begin_optimizer(optimizer: torch.optim.Optimizer, trace: Trace) -> None:
    """Bring its state into being, as the first step of a run does."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.zeros_like(p)
        trace.label([p.grad], "gradients", like=p)
    optimizer.register_step_pre_hook(lambda *_: setattr(trace, "phase", "optimizer"))
    with trace.during("optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for p in parameters:
        state = [t for t in optimizer.state[p].values() if t.device.type == trace.device]
        trace.label(state, "optimizer state", like=p)
