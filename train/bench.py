"""Speed of the UNet against the same UNet of `diffusers`, interleaved: `python -m train.bench --config FILE`.

diffusers is the oracle here, as in the tests, and no package that anything else runs on: `make bench` installs it, and
without it this is refused in a sentence. A ratio is comparable between machines, a time is not.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from nets.unet import UNet2DConditionModel
from train.base.errors import UserError
from train.base.progress import progress
from train.config import cli
from train.engine.device import pick_device
from train.runs.diffusers import unet_to_diffusers

ROUNDS = 10


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("bench", __doc__.splitlines()[0], "ldm")
    config = cli.read_config(parser.parse_args(argv), "ldm")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    try:
        import diffusers
    except ImportError:
        raise UserError("the bench compares with diffusers, which is not installed; pip install diffusers") from None
    device, batch = pick_device(), config.ldm_training.batch_size
    side = config.data.resolution // config.vae.downscale
    torch.manual_seed(config.seed)
    ours = UNet2DConditionModel(config.unet).to(device)
    theirs = diffusers.UNet2DConditionModel(**unet_to_diffusers(config.unet)).to(device)
    theirs.load_state_dict(ours.state_dict())
    sample = torch.randn(batch, config.unet.latent_channels, side, side, device=device)
    context = torch.randn(batch, config.user_encoder.tokens_per_user, config.unet.cross_attention_dim, device=device)
    labels = context.mean(dim=1) if config.unet.condition_in_time_embedding else None

    def step_ours() -> None:
        ours(sample, 500, context).square().mean().backward()

    def step_theirs() -> None:
        theirs(sample, 500, context, class_labels=labels).sample.square().mean().backward()

    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for round_ in progress(range(ROUNDS + 1), desc="bench", unit="round"):
        for name, step in (("ours", step_ours), ("diffusers", step_theirs)):
            elapsed = seconds(step, device)
            if round_:  # the first round warms up
                times[name].append(elapsed)
    ratios = [a / b for a, b in zip(times["ours"], times["diffusers"], strict=True)]
    for name, values in times.items():
        print(f"{name:10} {statistics.median(values) * 1e3:9.1f} ms for forward and backward of {batch} (median)")
    low, high = min(ratios), max(ratios)
    print(f"ours / diffusers {statistics.median(ratios):.3f} (median of {ROUNDS}; {low:.3f} to {high:.3f})")


def seconds(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    cli.run(main)
