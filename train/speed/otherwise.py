"""The whole step otherwise than the config has it: other batches, an adversary, compiled blocks, what only a card has.

A row that cannot be measured here says why, and the others stand.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from train.base.errors import UserError
from train.config.sections import MixedPrecision
from train.engine.compiling import compile_blocks
from train.engine.micro_batch import MicroBatch
from train.engine.stage import Stage
from train.speed.clock import Rounds, Stopwatch, Turn, in_turns
from train.speed.parts import OURS, THEIRS, Passes, eager, stage_sides, step_turns, with_plain
from train.speed.sides import compile_theirs

BATCHES = (1, 4)

Sides = dict[str, Stage]


def measured(work: Callable[[], dict[str, Rounds]]) -> dict:
    """The rounds, or why there are none."""
    try:
        return {"rounds": work()}
    except (UserError, RuntimeError) as error:
        return {"cannot": str(error).strip().splitlines()[0]}


def time_otherwise(
    sides: Sides, batch: Any, images: int, diffusers: ModuleType | None, more: dict[str, Callable[[], dict[str, Turn]]]
) -> dict[str, dict]:
    """By what is other: the rounds of each side. `batch` is of as many images as the largest of BATCHES, or more.

    `more` are turns besides. Compiling comes last, since it stays.
    """
    stage = sides[OURS]

    def timed(turns: dict[str, Turn]) -> dict[str, Rounds]:
        return in_turns(turns, stage.device, few=True)

    def steps(sides: Sides = sides, images: int = images, passes: Callable[..., Passes] = eager) -> dict[str, Rounds]:
        return timed(step_turns(sides, partial(passes, batch=batch, images=images), diffusers))

    def laid_out() -> dict[str, Rounds]:
        with channels_last(sides):
            return steps()

    def compiled() -> dict[str, Rounds]:
        compile_blocks(stage.model, stage.device)
        if THEIRS in sides:
            compile_theirs(sides[THEIRS].model)
        return steps()

    todo = {counted(n): partial(steps, with_plain(sides), n) for n in BATCHES if n != images}
    todo |= {f"{counted(images)}, {name}": lambda make=make: timed(make()) for name, make in more.items()}
    if stage.device.type == "cuda":
        todo[f"{counted(images)}, channels last"] = laid_out
        if stage.name == "ldm":
            todo[f"{counted(images)}, both passes as one CUDA graph"] = partial(steps, passes=graphed)
    if stage.name == "ldm" and not stage.training.compile:
        todo[f"{counted(images)}, blocks compiled"] = compiled
    return {name: measured(work) for name, work in todo.items()}


def counted(images: int) -> str:
    return f"{images} image{'s' if images > 1 else ''}"


# ---- the VAE's adversary


def adversarial(
    stage: Stage, batch: Any, images: int, diffusers: ModuleType | None, precision: MixedPrecision
) -> dict[str, Turn]:
    """The VAE's step against the stage's discriminator, the same one on both sides, and then that one's own."""
    sides = stage_sides(stage, diffusers, precision)
    batch = replace(batch, images=batch.images[:images], adversary=stage.adversary)

    def with_its_step(turn: Turn) -> Turn:
        def take(watch: Stopwatch) -> None:
            turn(watch)
            stage.after_step(batch, 1e-4, MicroBatch(stage.training, stage.training.batch_size))
            watch.lap("discriminator")

        return take

    turns = step_turns(sides, partial(eager, batch=batch, images=images), diffusers)
    return {name: with_its_step(turn) for name, turn in turns.items()}


# ---- on a card


@contextmanager
def channels_last(sides: Sides) -> Iterator[None]:
    """While entered, weights are laid out with their channels last, and activations with them."""
    lay_out(sides, torch.channels_last)
    try:
        yield
    finally:
        lay_out(sides, torch.contiguous_format)


def lay_out(sides: Sides, layout: torch.memory_format) -> None:
    for side in sides.values():
        side.model.to(memory_format=layout)
        side.learner.optimizer.zero_grad()
        side.learner.optimizer.state.clear()  # laid out as the weights were


def graphed(stage: Stage, batch: Any, images: int) -> Passes:
    """Forward and backward pass of all images at once, replayed as one CUDA graph."""
    stage = copy.copy(stage)  # nothing may come from the host while a graph is captured
    latents = torch.randn(images, *stage.source.shape, device=stage.device)
    stage.source = SimpleNamespace(latents=lambda rows, *_: latents[: len(rows)])
    tables = {field.name: getattr(stage.schedule, field.name) for field in fields(stage.schedule)}
    there = {name: table.to(stage.device) for name, table in tables.items() if isinstance(table, Tensor)}
    stage.schedule = replace(stage.schedule, **there)
    learner = replace(stage.learner, autocast=partial(stage.learner.autocast, cache_enabled=False))
    passes = partial(learner.accumulate, partial(stage.losses, batch), images, images)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # until libraries have chosen their kernels, and the loss scale is there
            passes()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        totals = passes()

    def take(watch: Stopwatch) -> dict[str, Tensor]:
        graph.replay()
        watch.lap("both passes")
        return totals

    return take
