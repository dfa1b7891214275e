"""Half precision where it is safe (torch.amp); weights, gradients and optimizer state stay float32."""

import sys
from collections.abc import Callable
from functools import partial

import torch

from train.base.errors import require
from train.config.sections import MixedPrecision

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def native_precision(device: torch.device, precision: MixedPrecision) -> MixedPrecision:
    """The precision, or "no" with a notice where that is fp16 on the CPU: there it takes some twenty times as long.

    UserError for bf16 on a GPU before Ampere: it "works", slower than fp32, since it is emulated.
    """
    if precision == "fp16" and device.type == "cpu":
        print(f"mixed_precision {precision}: this CPU only emulates it, slowly; computing in fp32", file=sys.stderr)
        return "no"
    if precision == "bf16" and device.type == "cuda":
        require(
            torch.cuda.get_device_capability() >= (8, 0),
            f"mixed_precision bf16: {torch.cuda.get_device_name()} only emulates it, slowly; use fp16 or no",
        )
    return precision


def autocast_to(device: torch.device, precision: MixedPrecision) -> Callable[[], torch.autocast]:
    """Makes a context within which operators work in this precision where that is safe."""
    return partial(torch.autocast, device.type, dtype=DTYPES[precision], enabled=precision != "no")


class GradScaler(torch.amp.GradScaler):
    """Scales the loss up, since fp16 gradients underflow; bf16 has the range of fp32, where it is not `enabled`.

    torch's, but for what an fp16 run has saved that was computed in fp32, as on the CPU: no scale at all.
    """

    def load_state_dict(self, state: dict) -> None:
        if state:
            super().load_state_dict(state)
