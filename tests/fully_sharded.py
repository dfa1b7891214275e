"""A step of a UNet that FSDP2 divides among processes, beside the same step in one: torch's `fully_shard`.

    python -m tests.fully_sharded CONFIG FOLDER
    torchrun --nproc_per_node=2 -m tests.fully_sharded CONFIG FOLDER

The first leaves in FOLDER the weights before, the gradients and the weights after; the second says how far its own are
from them. No training of ours is divided so; docs/scale.md says why. What it does, and what memory it takes there, is
measured here, and tests/engine/test_fully_sharded.py holds it for a small UNet.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nets.attention import SpatialTransformer
from nets.resnet import Downsample, ResnetBlock, Upsample
from nets.unet import UNet2DConditionModel, UNetConfig
from tests.scale import Memory
from train.base.processes import gather, joined, rank, world_size
from train.base.randomness import generator
from train.config.schema import Config
from train.config.sections import OptimConfig
from train.engine.optim import make_adamw

IMAGES, SIDE = 2, 16  # of a step, all processes together; the latents' side
LAYERS = ResnetBlock, SpatialTransformer, Downsample, Upsample  # of which one is whole at a time


def problem(config: UNetConfig, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (B, Z, h, w), times (B,), contexts (B, 1, D) and what is to be predicted (B, Z, h, w)."""
    rng, latents = generator(0, "images"), (IMAGES, config.latent_channels, side, side)
    shapes = latents, (IMAGES,), (IMAGES, 1, config.cross_attention_dim), latents
    x, times, context, target = (torch.randn(shape, generator=rng) for shape in shapes)
    return x, times.abs() * 300, context, target


def step(model: nn.Module, batch: tuple[Tensor, ...]) -> None:
    """Forward, backward and AdamW; the gradients stay."""
    x, times, context, target = batch
    optimizer = make_adamw(model.parameters(), OptimConfig(learning_rate=1e-4, fused=False))
    (model(x, times, context) - target).square().mean().backward()
    optimizer.step()


def alone(config: UNetConfig, side: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The step in one process: "before", then "gradient" and "after", each with what is so of every parameter.

    To be copied at once, since the weights change in place; of what no gradient reaches there is none.
    """
    torch.manual_seed(0)
    model = UNet2DConditionModel(config)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    yield "before", weights
    step(model, problem(config, side))
    yield "gradient", {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    yield "after", weights


def divided(config: UNetConfig, side: int, of_one: dict[str, dict[str, Tensor]]) -> dict:
    """The step in several, each with its own images; how far from that of one they are, and what they keep."""
    with torch.device("meta"):
        model = UNet2DConditionModel(config)
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    for module in (*layers, model):
        fully_shard(module)
    model.to_empty(device="cpu")
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in named.items():
            p.to_local().copy_(own(of_one["before"][name]))
    memory = Memory()
    images = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
    step(model, tuple(part[images] for part in problem(config, side)))

    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    assert gradients.keys() == of_one["gradient"].keys()
    kept = sum(p.to_local().nbytes for p in named.values())
    return {
        "gradient": distance(gradients, of_one["gradient"]),
        "step": distance(named, of_one["after"], of_one["before"]),
        "kept": gather(kept), "whole": sum(p.nbytes for p in of_one["before"].values()), "peak": gather(memory.peak),
        "layer": max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers),
    }  # fmt: skip


def own(whole: Tensor) -> Tensor:
    """The part of a tensor that this process has: as DTensor divides it, by rows."""
    parts = whole.chunk(world_size())
    return parts[rank()] if rank() < len(parts) else whole[:0]


@torch.no_grad()
def distance(ours: dict[str, DTensor], theirs: dict[str, Tensor], since: dict[str, Tensor] | None = None) -> float:
    """Of all numbers together, in lengths of theirs, or of their change `since` then."""
    squares = torch.zeros(2, dtype=torch.float64)
    for name, other in theirs.items():
        part = own(other)
        length = part - own(since[name]) if since else part
        squares += torch.stack([(ours[name].to_local() - part).double().square().sum(), length.double().square().sum()])
    difference, length = torch.stack(gather(squares)).sum(0).sqrt()
    return float(difference / length)


def main() -> None:
    path, folder = map(Path, sys.argv[1:])
    config = Config.read(path).unet
    with joined():
        if world_size() == 1:
            memory = Memory()
            for kind, tensors in alone(config, SIDE):
                torch.save(tensors, folder / f"{kind}.pt")
            found = {"peak": memory.peak}
        else:
            kinds = ("before", "gradient", "after")
            found = divided(config, SIDE, {kind: torch.load(folder / f"{kind}.pt", mmap=True) for kind in kinds})
        print(json.dumps(found))


if __name__ == "__main__":
    main()
