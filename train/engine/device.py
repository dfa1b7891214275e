"""The device that a run computes on, and the most memory that it has taken there."""

import gc
import os
import resource
import sys

import torch

from train.base.errors import UserError, require


def pick_device() -> torch.device:
    """The first GPU that this build of torch has kernels for; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    # A wheel without kernels for a GPU still says that CUDA is available, and fails at the first kernel.
    # Binaries (sm_) run on GPUs of the same major version and of no lower minor one.
    archs = torch.cuda.get_arch_list()
    binaries = [_capability(arch) for arch in archs if arch.startswith("sm_")]
    portable = [_capability(arch) for arch in archs if arch.startswith("compute_")]
    runs = any(m == major and n <= minor for m, n in binaries) or any(c <= (major, minor) for c in portable)
    require(
        runs,
        f"{torch.cuda.get_device_name()} (sm_{major}{minor}): torch {torch.__version__} has no kernels "
        f"for it, only {' '.join(archs)}; for a P100 (sm_60) install a build for CUDA 12.6 (cu126)",
    )
    # Where fp32 is asked for: from Ampere on, torch lets convolutions round their inputs to the 10 bits of TF32.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_named(name: str | torch.device) -> torch.device:
    """A device of torch that can be used here; UserError where it cannot."""
    try:
        device = own_card(torch.device(name))
        torch.empty(1, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last where torch was built without CUDA
        said = "".join(str(error).splitlines()[:1])
        raise UserError(f"device {name}: cannot be used here ({said}); cpu always can") from None
    if device.type == "cuda":
        pick_device()  # refuses a card without kernels
    return device


def own_card(device: torch.device) -> torch.device:
    """Of "cuda", which says not which: in each of torchrun's processes another one."""
    if device == torch.device("cuda") and "TORCHELASTIC_RUN_ID" in os.environ:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def _capability(arch: str) -> tuple[int, int]:
    digits = "".join(c for c in arch.split("_")[1] if c.isdigit())  # sm_90a: the a is not part of the number
    return int(digits[:-1]), int(digits[-1])


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors have taken on a GPU; on the CPU, the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> None:
    """Give back what nothing uses any more, to the GPU as well. Not within `except`, whose traceback uses it still."""
    gc.collect()
    torch.cuda.empty_cache()
