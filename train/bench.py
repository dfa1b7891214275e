"""Speed of the UNet against the same UNet of `diffusers`, interleaved: `python -m train.bench --config FILE`.

Both take turns in the LDM's own training step. Only this command and the tests need diffusers, which `make bench`
installs. Ratios are comparable between machines, times are not.
"""

import os
import statistics
import time
from functools import partial

import torch
from torch import Tensor, nn

from train.base.errors import require
from train.base.optional import optional
from train.base.progress import progress
from train.config import cli
from train.engine.device import pick_device
from train.memory.models import blank_stage
from train.memory.scenario import Scenario
from train.runs.diffusers import unet_to_diffusers

ROUNDS = 10


class Theirs(nn.Module):
    """The UNet of `diffusers`, called as ours is."""

    def __init__(self, unet: nn.Module, condition_in_time_embedding: bool):
        super().__init__()
        self.unet, self.condition_in_time_embedding = unet, condition_in_time_embedding

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        labels = context.mean(dim=1) if self.condition_in_time_embedding else None
        return self.unet(x, t, context, class_labels=labels).sample


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("bench", __doc__, "ldm")
    config = cli.read_config(parser.parse_args(argv), "ldm")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # download nothing
    diffusers = optional("diffusers", "diffusers")
    require(diffusers, "the bench compares with diffusers, which is not installed, or broken; pip install diffusers")
    device, images = pick_device(), config.ldm_training.batch_size
    torch.manual_seed(config.seed)
    stage = blank_stage(Scenario(config, device=device.type))
    ours = stage.model.unet
    unet = diffusers.UNet2DConditionModel(**unet_to_diffusers(ours.config)).to(device)
    unet.load_state_dict(ours.state_dict())
    stage.use_latents(torch.zeros(1, 2, *stage.source.shape))
    batch = stage.draw(0, torch.zeros(images, dtype=torch.int64))
    sides = {"ours": ours, "diffusers": Theirs(unet, ours.config.condition_in_time_embedding)}

    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in progress(range(ROUNDS + 1), desc="bench", unit="round"):
        for name, stage.model.unet in sides.items():
            stage.model.zero_grad()
            start = time.perf_counter()
            stage.learner.accumulate(partial(stage.losses, batch), images, images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["diffusers"], strict=True)]
    for name, values in times.items():
        print(f"{name:10} {statistics.median(values) * 1e3:9.1f} ms for forward and backward of {images} (median)")
    low, high = min(ratios), max(ratios)
    print(f"ours / diffusers {statistics.median(ratios):.3f} (median of {ROUNDS}; {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    cli.run(main)
