"""The trace against the real thing: the same run on real CPU tensors, by what their allocator reports.

torch.profiler writes down every allocation; it knows nothing of the trace.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train import strict_yaml
from train.config import Config
from train.memory.account import Account
from train.memory.stages import Setting, trace
from train.memory.trace import Trace

FORWARD_END = "end of forward"  # a mark in the profiler's record
RNG_STATE = torch.get_rng_state().nbytes
CONFIGS = Path(__file__).parents[1] / "configs"


def config_of(name: str, *overrides: str) -> Config:
    settings = [(f"--set {o}", *o.split("=", 1)) for o in overrides]
    return strict_yaml.load(Config, CONFIGS / f"{name}.yaml", settings)


def narrow(*overrides: str) -> Config:
    """The `medium` shapes of things with an eighth to a quarter of its widths, and half its resolution."""
    return config_of(
        "medium", "data.resolution=64", "vae.channels=[32, 64, 64]", "vae.norm_groups=8",
        "unet.channels=[32, 64, 128, 128]", "unet.norm_groups=8", "unet.num_heads=4", "unet.cross_attention_dim=64",
        "user_encoder.dim=64", "ldm_training.mixed_precision=no", "vae_training.mixed_precision=no",
        "ldm_training.batch_size=8", "vae_training.batch_size=2", "vae_training.gradient_accumulation_steps=1",
        *overrides,
    )  # fmt: skip


def allocator(setting: Setting) -> tuple[int, list[int]]:
    """Bytes in a real run on the CPU: at its highest moment, and at the end of each forward pass.

    What a convolution takes and gives back before it returns is left out: that is oneDNN's scratch memory,
    as cuDNN has one on a card, and no trace can see it. So is the state of the random generator that each
    checkpoint keeps: it stays on the CPU.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trace(replace(setting, device="cpu"))
    live = peak = end = 0
    inside: list[int] = []  # what the convolution that runs until `end` has taken, and not given back
    forward_ends = []
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: (e.start_ns(), -e.end_ns())):
        if event.start_ns() > end:
            live, inside = live + sum(inside), []
            peak = max(peak, live)
        if event.name() == FORWARD_END:
            forward_ends.append(live)
        elif event.name() == "[memory]" and abs(event.nbytes()) != RNG_STATE:
            if event.start_ns() > end:
                live += event.nbytes()
            elif -event.nbytes() in inside:
                inside.remove(-event.nbytes())
            else:
                inside.append(event.nbytes())
        elif "convolution" in event.name() and event.start_ns() > end:
            end = event.end_ns()
    return max(peak, live), forward_ends


@pytest.fixture(autouse=True)
def _mark_the_end_of_forward_for_the_profiler(monkeypatch):
    end_forward = Trace.end_forward

    def marked(self) -> None:
        with torch.profiler.record_function(FORWARD_END):
            end_forward(self)

    monkeypatch.setattr(Trace, "end_forward", marked)


BF16 = "ldm_training.mixed_precision=bf16"
LIGHT = ("unet.channels=[64, 128, 256, 384]", "unet.cross_attention_dim=256", "user_encoder.dim=256")
CHECKPOINTING = "ldm_training.gradient_checkpointing=true"


def case(config: Config, stage: str = "ldm", **options) -> Setting:
    return Setting(config, stage, attention="math", **{"validates": False, **options})


CASES = {
    "demo": case(config_of("demo", "ldm_training.batch_size=4"), validates=True),
    "demo-vae": case(config_of("demo", "vae_training.batch_size=4"), "vae", validates=True),
    "light": case(config_of("medium", *LIGHT, "ldm_training.batch_size=1", "ldm_training.mixed_precision=no")),
    "fp32": case(narrow()),
    "bf16": case(narrow(BF16)),
    "tokens": case(narrow("user_encoder.tokens_per_user=4")),
    "checkpointing": case(narrow(CHECKPOINTING)),
    "bf16-checkpointing": case(narrow(BF16, CHECKPOINTING)),
    "in-loop": case(narrow("latents.cache_latents=false")),
    "accumulation": case(narrow("ldm_training.gradient_accumulation_steps=2")),
    "no-ema": case(narrow(), ema_on_card=False),
    "vae": case(narrow(), "vae"),
    "vae-bf16": case(narrow("vae_training.mixed_precision=bf16"), "vae"),
    "vae-checkpointing": case(narrow("vae_training.gradient_checkpointing=true"), "vae"),
    "vae-adversarial": case(narrow("vae_loss.adversarial_weight=0.5"), "vae"),
    "sampling": case(narrow(), "sample"),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_and_end_of_forward_equal_the_allocator_on_real_tensors(name):
    account = Account(trace(CASES[name]))
    peak, forward_ends = allocator(CASES[name])
    live = account.live()
    assert account.peak().bytes == pytest.approx(peak, rel=1e-3)
    assert [int(live[clock]) for clock in account.forward_ends] == pytest.approx(forward_ends, rel=1e-3)
