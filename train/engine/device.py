"""The device that a run computes on, and what it can do."""

import resource
import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

from train.base.errors import UserError

MixedPrecision = Literal["no", "fp16", "bf16"]
SLOW_ON_CPU = {"fp16"}
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device() -> torch.device:
    """The first CUDA card that this build of torch has kernels for; the CPU where there is no card."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    # A wheel without kernels for a card still says that CUDA is available, and fails at the first kernel.
    # Binaries (sm_) run on cards of the same major version and of no lower minor one.
    archs = torch.cuda.get_arch_list()
    binaries = [_capability(arch) for arch in archs if arch.startswith("sm_")]
    portable = [_capability(arch) for arch in archs if arch.startswith("compute_")]
    runs = any(m == major and n <= minor for m, n in binaries) or any(c <= (major, minor) for c in portable)
    if not runs:
        raise UserError(
            f"{torch.cuda.get_device_name()} (sm_{major}{minor}): torch {torch.__version__} has no kernels "
            f"for it, only {' '.join(archs)}; for a P100 (sm_60) install a build for CUDA 12.6 (cu126)"
        )
    return torch.device("cuda")


def _capability(arch: str) -> tuple[int, int]:
    digits = "".join(c for c in arch.split("_")[1] if c.isdigit())  # sm_90a: the a is not part of the number
    return int(digits[:-1]), int(digits[-1])


def native_precision(device: torch.device, precision: MixedPrecision) -> MixedPrecision:
    """The precision, or "no" with a notice where that is fp16 on the CPU: there it takes some twenty times as long.

    UserError for bf16 on a card before Ampere: it "works", slower than fp32, since it is emulated.
    """
    if precision in SLOW_ON_CPU and device.type == "cpu":
        print(f"mixed_precision {precision}: this CPU only emulates it, slowly; computing in fp32", file=sys.stderr)
        return "no"
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"mixed_precision bf16: {torch.cuda.get_device_name()} only emulates it, slowly; use fp16 or no"
        )
    return precision


def autocast(device: torch.device, precision: MixedPrecision) -> AbstractContextManager:
    """Half precision where it is safe (torch.amp); weights, gradients and optimizer state stay float32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "no")


class GradScaler(torch.amp.GradScaler):
    """torch's, but for what an fp16 run has saved that was computed in fp32, as on the CPU: no scale at all."""

    def load_state_dict(self, state: dict) -> None:
        if state:
            super().load_state_dict(state)


def grad_scaler(device: torch.device, precision: MixedPrecision) -> GradScaler:
    """fp16 gradients underflow unless the loss is scaled up; bf16 has the range of fp32."""
    return GradScaler(device.type, enabled=precision == "fp16")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors have taken on a CUDA card; on the CPU, the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
