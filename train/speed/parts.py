"""What a user pays for, part by part, on both sides: a training step by phase, a guided evaluation, the VAE's work."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.guidance import guided
from nets.linear import ONEDNN
from train.engine.ema import EMA
from train.engine.lean import Lean
from train.engine.stage import Stage
from train.engine.step import Learner, mean_losses
from train.speed.clock import Rounds, Stopwatch, Turn, in_turns, one_phase
from train.speed.kept import kept_per_sample
from train.speed.sides import their_stage

OURS, PLAIN, THEIRS = "ours", "ours, all kept", "diffusers"
PHASES = ("forward", "backward", "clip", "optimizer", "EMA")
FUSED = "optimizer, fused"  # a second step by AdamW's other form, which a whole step may have in place of the first

Passes = Callable[[Stopwatch], dict[str, Tensor]]
"""Forward and backward pass, with their laps; the mean losses."""


def eager(stage: Stage, batch: Any, images: int) -> Passes:
    """As a training runs them, on `images` images with fresh gradients."""

    def take(watch: Stopwatch) -> dict[str, Tensor]:
        @contextmanager
        def timed() -> Iterator[None]:
            if watch.seconds:  # an earlier micro-batch's
                watch.lap("backward")
            with stage.learner.autocast():
                yield
            watch.lap("forward")

        learner = replace(stage.learner, autocast=timed)
        totals = learner.accumulate(partial(stage.losses, batch), images, stage.training.batch_size)
        watch.lap("backward")
        return totals

    return take


def step_turn(
    learner: Learner, passes: Passes, average: Callable[[], object], fused: torch.optim.Optimizer | None = None
) -> Turn:
    """One optimizer step, with the moving average."""

    def take(watch: Stopwatch) -> None:
        totals = passes(watch)
        norm = learner.clip()
        watch.lap("clip")
        learner.step(mean_losses(totals)["loss"], norm)
        watch.lap("optimizer")
        if fused:
            fused.step()
            watch.lap(FUSED)
        average()
        watch.lap("EMA")

    return take


def without_scaling(learner: Learner, precision: str) -> Learner:
    """With a loss scale of 1: no step is skipped, so that each takes its time."""
    scaler = type(learner.scaler)(learner.parameters[0].device.type, init_scale=1.0, enabled=precision == "fp16")
    return replace(learner, scaler=scaler)


def stage_sides(stage: Stage, diffusers: ModuleType | None, precision: str) -> dict[str, Stage]:
    """The stage as it trains; the same with the models of `diffusers`."""
    stage.build(stage.device, precision)
    stage.learner = without_scaling(stage.learner, precision)
    found = {OURS: stage}
    if diffusers:
        found[THEIRS] = their_stage(stage, diffusers, precision)
        found[THEIRS].learner = without_scaling(found[THEIRS].learner, precision)
    return found


def with_plain(sides: dict[str, Stage]) -> dict[str, Stage]:
    """And ours with all activations kept."""
    plain = copy.copy(sides[OURS])
    plain.learner = replace(plain.learner, lean=False)
    return {OURS: sides[OURS], PLAIN: plain, **sides}


def step_turns(
    sides: dict[str, Stage], passes: Callable[[Stage], Passes], diffusers: ModuleType | None
) -> dict[str, Turn]:
    """The whole step, by side."""
    ours = sides[OURS]
    ema, optim = EMA(ours.model, ours.training.ema_decay, ours.training.ema_on_cpu), ours.training.optimizer
    turns = {}
    for name, one in sides.items():
        average, fused = partial(ema.update, ours.model), None
        if name == THEIRS:
            parameters = list(one.model.parameters())
            their_ema = diffusers.training_utils.EMAModel(parameters, decay=ours.training.ema_decay)
            average = partial(their_ema.step, parameters)
            fused = torch.optim.AdamW(parameters, lr=optim.learning_rate, fused=True)
        turns[name] = step_turn(one.learner, passes(one), average, fused)
    return turns


def time_steps(sides: dict[str, Stage], batch: Any, images: int, diffusers: ModuleType | None) -> dict[str, Rounds]:
    """Of the whole step, by side and phase."""
    turns = step_turns(with_plain(sides), partial(eager, batch=batch, images=images), diffusers)
    return in_turns(turns, sides[OURS].device)


def kept(sides: dict[str, Stage], batch: Any) -> dict[str, int]:
    """Bytes per sample that the loss keeps for its backward pass, by side; where nothing is compiled."""

    def of(stage: Stage, lean: bool) -> int:
        def losses(count: int) -> Tensor:
            with torch.compiler.set_stance("force_eager"), stage.learner.autocast(), Lean() if lean else nullcontext():
                return stage.losses(batch, slice(0, count))["loss"].sum()

        return kept_per_sample(losses)

    ours = sides[OURS]
    found = {OURS: of(ours, ours.learner.lean), PLAIN: of(ours, False)}
    return found | ({THEIRS: of(sides[THEIRS], False)} if THEIRS in sides else {})


def flops(stage: Stage, batch: Any, images: int) -> int:
    """Floating-point operations of products and convolutions in forward and backward pass, where all is kept."""
    learner = replace(stage.learner, lean=False)
    products = {ONEDNN: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]} if ONEDNN else {}
    with (
        FlopCounterMode(display=False, custom_mapping=products) as counter,
        sdpa_kernel(SDPBackend.MATH),  # which it can look into, as into what is not compiled
        torch.compiler.set_stance("force_eager"),
    ):
        learner.accumulate(partial(stage.losses, batch), images, stage.training.batch_size)
    return counter.get_total_flops()


def peaks(sides: dict[str, Stage], batch: Any, images: int) -> dict[str, int]:
    """Bytes that a card's allocator gives to forward and backward pass, beyond what is there between steps."""
    found = {}
    for name, stage in sides.items():
        before = torch.cuda.memory_allocated(stage.device)
        torch.cuda.reset_peak_memory_stats(stage.device)
        stage.learner.accumulate(partial(stage.losses, batch), images, stage.training.batch_size)
        found[name] = torch.cuda.max_memory_allocated(stage.device) - before
    return found


@torch.no_grad()
def time_guided(sides: dict[str, Stage]) -> dict[str, Rounds]:
    """One evaluation with guidance, of as many images as are sampled at once: a batch of twice as many."""
    stage = sides[OURS]
    count, level = stage.config.sampling.batch_size, stage.schedule.level(0)
    x = torch.randn(count, *stage.source.shape, device=stage.device)
    users = torch.zeros(count, dtype=torch.int64, device=stage.device)
    turns = {}
    for name, side in sides.items():
        encoder = side.model.user_encoder
        nobody = torch.ones(count, dtype=torch.bool, device=stage.device)
        denoise = guided(side.model.unet, encoder(users), encoder(users, nobody), 2.0)
        turns[name] = one_phase(without_gradients(partial(denoise, x, level)))
    return in_turns(turns, stage.device)


def time_vae(sides: dict[str, Stage], images: Tensor) -> dict[str, dict[str, Rounds]]:
    """Encoding and decoding, as they are used: in fp32, without gradients."""
    with torch.no_grad():
        latents = sides[OURS].model.encode(images).mean
    work: dict[str, Callable[[nn.Module], object]] = {
        "encode": lambda vae: vae.encode(images), "decode": lambda vae: vae.decode(latents),
    }  # fmt: skip
    return {
        what: in_turns(
            {name: one_phase(without_gradients(partial(task, side.model))) for name, side in sides.items()},
            images.device,
        )
        for what, task in work.items()
    }


def without_gradients(work: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(work)
