"""NVIDIA GPUs: their usable memory, and the features that decide whether a run works.

Driver and error correction take part of the nominal memory, so another machine may report a little more or less.
"""

from dataclasses import dataclass

import torch

from train.base.errors import BadArgument, nearest
from train.base.units import GiB
from train.memory.cuda_rules import AttentionKernel


@dataclass(frozen=True)
class GPU:
    name: str
    memory: float  # GiB, as torch.cuda.get_device_properties().total_memory reports
    capability: tuple[int, int]
    source: str  # of `memory`: mostly the lowest "total capacity" found in torch's out-of-memory messages

    @property
    def bytes(self) -> int:
        return int(self.memory * GiB)

    @property
    def bf16(self) -> bool:
        """Whether it has bf16 in hardware; older GPUs emulate it, slowly."""
        return self.capability >= (8, 0)

    @property
    def attention(self) -> AttentionKernel:
        """The best attention kernel it has (train/memory/cuda_rules.py)."""
        return "flash" if self.capability >= (8, 0) else "efficient"

    def head_alignment(self, half: bool) -> int:
        """The efficient kernel needs head widths that are multiples of this (minimum_gemm_alignment, sdp_utils.cpp)."""
        if half and self.capability >= (7, 0):
            return 8
        return 4 if self.capability >= (8, 0) else 1


def gpu_here(device: torch.device) -> GPU | None:
    """The CUDA GPU of this device, with only its capability filled in; None for other devices."""
    return GPU("here", 0, torch.cuda.get_device_capability(device), "") if device.type == "cuda" else None


NOT_MEASURED = "nominal less what drivers usually keep, not measured"

GPUS = (
    GPU("T4", 14.56, (7, 5), "torch's message in Zheng-Chong/CatVTON issue 133"),
    GPU("P100", 15.89, (6, 0), NOT_MEASURED),
    GPU("V100-16GB", 15.77, (7, 0), NOT_MEASURED + "; 15.78 in kchengiva/Shift-GCN issue 34"),
    GPU("V100-32GB", 31.73, (7, 0), NOT_MEASURED + "; 31.74 in liucongg/ChatGLM-Finetuning issue 73"),
    GPU("RTX3060", 11.75, (8, 6), "torch's message in Kunhao-Liu/StyleGaussian issue 12"),
    GPU("RTX4090", 23.52, (8, 9), "torch's message in Soul-AILab/SoulX-FlashTalk issue 5"),
    GPU("A10", 22.06, (8, 6), NOT_MEASURED + "; nvidia-smi's total is 22.49 (modal-labs/modal-client pull 2797)"),
    GPU("L4", 22.03, (8, 9), NOT_MEASURED + "; nvidia-smi's total is 22.49 (modal-labs/modal-client pull 2797)"),
    GPU("A100-40GB", 39.38, (8, 0), NOT_MEASURED + "; 39.50 in TianheWu/CoSeR issue 10"),
    GPU("A100-80GB", 79.15, (8, 0), NOT_MEASURED + "; 79.25 in levihsu/OOTDiffusion issue 235"),
    GPU("H100", 79.10, (9, 0), NOT_MEASURED + "; nvidia-smi's total is 79.65 (modal-labs/modal-client pull 2797)"),
    GPU("H200", 139.7, (9, 0), NOT_MEASURED),
)


def gpu_named(name: str) -> GPU:
    """The GPU with this name, or whose name begins with it; BadArgument if there is none or more than one."""
    wanted = name.lower().replace(" ", "").replace("-", "")
    gpus = {gpu.name.lower().replace("-", ""): gpu for gpu in GPUS}
    found = [gpu for key, gpu in gpus.items() if wanted and key.startswith(wanted)]
    if wanted in gpus or len(found) == 1:  # "A10" is also the beginning of "A100"
        return gpus.get(wanted) or found[0]
    names = [gpu.name for gpu in found or GPUS]
    raise BadArgument(
        f"gpu {name}: which of {', '.join(names)}?" if found
        else f"gpu {name}: not a known card{nearest(name, names)}: {', '.join(names)}"
    )  # fmt: skip
