"""The trace against the real thing: the same run on real CPU tensors, by what their allocator reports.

torch.profiler writes down every allocation; it knows nothing of the trace, and the trace is not in the run's way: a
dispatch mode would lead torch into other branches (what is added in place otherwise is not, while one looks on).
"""

import gc
from dataclasses import replace

import pytest
import torch
from torch._C._profiler import _EventType
from torch.utils._python_dispatch import TorchDispatchMode

from nets import linear
from tests.memory.presets import config_of
from train.config.schema import Config
from train.memory.account import Account
from train.memory.scenario import Scenario
from train.memory.step import prepare, trace_of
from train.memory.trace import Trace

FORWARD_END = "end of forward"  # a mark in the profiler's record
CONVOLUTIONS = {"aten::convolution", "aten::_convolution", "aten::mkldnn_convolution", "aten::convolution_backward"}
WITHIN_CONVOLUTIONS = {
    f"aten::{name}" for name in (
        "empty", "empty_like", "empty_strided", "zeros", "zero_", "fill_", "as_strided", "as_strided_", "resize_",
        "contiguous", "clone", "copy_", "to", "_to_copy", "view", "reshape", "transpose", "squeeze", "unsqueeze",
        "t", "sum",
    )
}  # fmt: skip
RNG_STATE = torch.get_rng_state().nbytes
ON_THE_HOST = 80_000  # bytes of images, of the schedule's tables and of step counts, which on a card are the CPU's


def narrow(*overrides: str) -> Config:
    """The `medium` shapes of things with an eighth to a quarter of its widths, and half its resolution."""
    return config_of(
        "medium", "data.resolution=64", "vae.channels=[32, 64, 64]", "vae.norm_groups=8",
        "unet.channels=[32, 64, 128, 128]", "unet.layers_per_block=1", "unet.norm_groups=8", "unet.num_heads=4",
        "unet.cross_attention_dim=64", "ldm_training.mixed_precision=no", "vae_training.mixed_precision=no",
        "ldm_training.batch_size=4", "vae_training.batch_size=2", "vae_training.gradient_accumulation_steps=1",
        *overrides,
    )  # fmt: skip


def allocator(scenario: Scenario, times: int = 1) -> tuple[int, list[int]]:
    """Bytes in a real run on the CPU: at its highest moment, and at the end of each forward pass.

    What a convolution takes and gives back before it returns is left out: that is oneDNN's scratch memory,
    as cuDNN has one on a card, and no trace can see it. So is the state of the random generator that each
    checkpoint keeps: it stays on the CPU.
    """
    gc.collect()  # or the end of what an earlier run has left would count here
    with (
        pytest.MonkeyPatch.context() as unseen,
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        unseen.setattr(linear, "CHOICE", False)  # as on a card, where torch's own linear layer is what runs
        unseen.setattr(TorchDispatchMode, "__enter__", lambda mode: mode)
        unseen.setattr(TorchDispatchMode, "__exit__", lambda mode, *error: None)
        run = prepare(replace(scenario, device="cpu"))
        for _ in range(times):
            run.take()
    events = sorted(flattened(profile.profiler.kineto_results.experimental_event_tree()), key=lambda e: e.start_time_ns)
    scratch = scratch_of_convolutions(events)
    live = peak = 0
    forward_ends = []
    for position, event in enumerate(events):
        if is_allocation(event):
            size = event.typed[1].alloc_size
            if position not in scratch and abs(size) != RNG_STATE:
                live += size
                peak = max(peak, live)
        elif event.name == FORWARD_END:
            forward_ends.append(live)
    return peak, forward_ends


def flattened(events) -> list:
    return [each for event in events for each in (event, *flattened(event.children))]


def is_allocation(event) -> bool:
    """Or the end of one: then its size is negative."""
    return event.tag == _EventType.Allocation


def scratch_of_convolutions(events: list) -> set[int]:
    """Positions of the events that give what is given back before any but a convolution's own operators begin.

    (When an operator ended is not always in the record.)
    """
    scratch: set[int] = set()
    taken: dict[int, int] | None = None  # address to position, since a convolution has begun
    for position, event in enumerate(events):
        if is_allocation(event):
            address = event.typed[1].ptr
            if taken is not None and event.typed[1].alloc_size > 0:
                taken[address] = position
            elif taken and address in taken:
                scratch |= {position, taken.pop(address)}
        elif event.name in CONVOLUTIONS:
            taken = taken or {}
        elif event.name not in WITHIN_CONVOLUTIONS:
            taken = None
    return scratch


@pytest.fixture(autouse=True)
def _mark_the_end_of_forward_for_the_profiler(monkeypatch):
    end_forward = Trace.end_forward

    def marked(self) -> None:
        with torch.profiler.record_function(FORWARD_END):
            end_forward(self)

    monkeypatch.setattr(Trace, "end_forward", marked)


BF16 = "ldm_training.mixed_precision=bf16"
LIGHT = ("data.resolution=64", "unet.channels=[64, 128, 256, 384]", "unet.cross_attention_dim=256")
CHECKPOINTING = "ldm_training.gradient_checkpointing=true"


def case(config: Config, stage: str = "ldm", **options) -> Scenario:
    return Scenario(config, stage, attention="math", **{"validates": False, **options})


CASES = {
    "demo": case(config_of("demo", "ldm_training.batch_size=4"), validates=True),
    "demo-vae": case(config_of("demo", "vae_training.batch_size=4"), "vae", validates=True),
    "light": case(config_of("medium", *LIGHT, "ldm_training.batch_size=1", "ldm_training.mixed_precision=no")),
    "fp32": case(narrow()),
    "bf16": case(narrow(BF16)),
    "tokens": case(narrow("user_encoder.tokens_per_user=4")),
    "plain": case(narrow("ldm_training.lean_activations=false")),
    "checkpointing": case(narrow(CHECKPOINTING)),
    "bf16-checkpointing": case(narrow(BF16, CHECKPOINTING)),
    "in-loop": case(narrow("latents.cache_latents=false")),
    "accumulation": case(narrow("ldm_training.gradient_accumulation_steps=2")),
    "ema-on-cpu": case(narrow("ldm_training.ema_on_cpu=true")),
    "processes": case(narrow("ldm_training.shard_optimizer=true"), processes=2),
    "vae": case(narrow(), "vae"),
    "vae-bf16": case(narrow("vae_training.mixed_precision=bf16"), "vae"),
    "vae-checkpointing": case(narrow("vae_training.gradient_checkpointing=true"), "vae"),
    "vae-adversarial": case(narrow("vae_loss.adversarial_weight=0.5"), "vae"),
    # Not lean, or its highest moment is when the discriminator's two gradients are added up. Autograd does that in
    # place where nothing else holds the first one, and never while a dispatch mode looks on, as the trace does
    # (can_accumulate_inplace in torch/csrc/autograd/input_buffer.cpp); and looking on, the trace itself holds it.
    "vae-long-batch": case(
        narrow("vae_loss.adversarial_weight=0.5", "vae_training.gradient_accumulation_steps=40",
               "vae_training.lean_activations=false"), "vae"
    ),
    "sampling": case(narrow(), "sample"),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_and_forward_end_equal_those_of_the_real_allocator(name):
    account = Account(trace_of(CASES[name]))
    peak, forward_ends = allocator(CASES[name])
    live = account.live()
    assert account.peak().bytes == pytest.approx(peak, rel=1e-3)
    ends = [int(live[clock]) for clock in account.forward_ends]
    assert ends == pytest.approx(forward_ends, rel=1e-3, abs=ON_THE_HOST)


@pytest.mark.parametrize("name", ["fp32", "accumulation", "vae", "vae-adversarial"])
def test_further_steps_need_what_those_that_are_traced_do(name):
    peak, _ = allocator(CASES[name], times=2)
    assert Account(trace_of(CASES[name])).peak().bytes == pytest.approx(peak, rel=1e-3)
