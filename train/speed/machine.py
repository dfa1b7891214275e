"""The machine that was measured on, and how fast it can be at all."""

import platform
import subprocess
from pathlib import Path

import torch
from torch.nn import functional as F

from train.base.optional import optional
from train.base.units import gib
from train.speed.clock import figure, in_turns, one_phase

FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve")
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
IMAGES = {"cpu": 4, "cuda": 256}  # of the convolution
COPIED = 2**28  # bytes


def machine(device: torch.device) -> dict[str, str]:
    """What a figure depends on beside the source: processor, threads, versions; and the source's commit."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (known.get("flags") or known.get("Features") or "").split()
    facts = {
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "features": " ".join(name for name in FEATURES if name in flags) or "not known",
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} of {torch.get_num_interop_threads()} between operators",
        "versions": versions(),
        "commit": commit(),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts["card"] = f"{card.name}, {gib(card.total_memory)} GiB, sm_{card.major}{card.minor}"
    return facts


def versions() -> str:
    diffusers = optional("diffusers", "diffusers")
    theirs = diffusers.__version__ if diffusers else "is not here"
    return f"torch {torch.__version__}, diffusers {theirs}, Python {platform.python_version()}"


def commit() -> str:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "not known"
    return said.stdout.strip() or "not known"


@torch.no_grad()
def ceiling(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a product of large matrices and of a 3x3 convolution; bytes/s read and written by a copy."""
    side, images, width, grid = SIDES[device.type], IMAGES[device.type], 512, 16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(images, width, grid, grid, device=device, dtype=dtype)
    kernel = torch.randn(width, width, 3, 3, device=device, dtype=dtype)
    source = torch.ones(COPIED, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    work = {
        "matrix product": (lambda: a @ b, 2 * side**3),
        "convolution": (lambda: F.conv2d(x, kernel, padding=1), 2 * x.numel() * width * 9),
        "copy": (lambda: target.copy_(source), 2 * COPIED),
    }
    times = in_turns({name: one_phase(task) for name, (task, _) in work.items()}, device)
    return {name: amount / figure([one["all"] for one in times[name]]).low for name, (_, amount) in work.items()}
