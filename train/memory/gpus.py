"""NVIDIA cards: how much memory a program finds there, and what else decides whether a run works.

`memory` is what torch.cuda.get_device_properties().total_memory shows, in GiB; `source` is where that is from:
mostly torch's own out-of-memory messages ("total capacity"), the lowest that was found. Drivers and error
correction keep some of what the label promises, so that another machine may show a little more or less.
"""

from dataclasses import dataclass

import torch

from train.base.errors import UserError, nearest
from train.memory.cuda_rules import Attention

GiB = 2**30


@dataclass(frozen=True)
class CardType:
    name: str
    memory: float
    capability: tuple[int, int]
    source: str

    @property
    def bytes(self) -> int:
        return int(self.memory * GiB)

    @property
    def bf16(self) -> bool:
        """In hardware; older cards emulate it, slowly."""
        return self.capability >= (8, 0)

    @property
    def attention(self) -> Attention:
        """The best of its kernels beside the plain one (train/memory/cuda_rules.py)."""
        return "flash" if self.capability >= (8, 0) else "efficient"

    def head_alignment(self, half: bool) -> int:
        """What a head's width is a multiple of for the efficient kernel (minimum_gemm_alignment, sdp_utils.cpp)."""
        if half and self.capability >= (7, 0):
            return 8
        return 4 if self.capability >= (8, 0) else 1

    @property
    def wheel(self) -> str:
        """The builds of torch that carry kernels for it (Volta and Pascal: those for CUDA 12.6 only)."""
        return "any" if self.capability >= (7, 5) else "cu126"


def card_here(device: torch.device) -> CardType | None:
    """The CUDA card that is here, as far as its kernels go; None where the device is none."""
    return CardType("here", 0, torch.cuda.get_device_capability(device), "") if device.type == "cuda" else None


NOT_MEASURED = "nominal less what drivers usually keep, not measured"

CARDS = (
    CardType("P100", 15.89, (6, 0), NOT_MEASURED),
    CardType("T4", 14.56, (7, 5), "torch's message in Zheng-Chong/CatVTON issue 133"),
    CardType("V100-16GB", 15.77, (7, 0), NOT_MEASURED + "; 15.78 in kchengiva/Shift-GCN issue 34"),
    CardType("V100-32GB", 31.73, (7, 0), NOT_MEASURED + "; 31.74 in liucongg/ChatGLM-Finetuning issue 73"),
    CardType("RTX3060", 11.75, (8, 6), "torch's message in Kunhao-Liu/StyleGaussian issue 12"),
    CardType("RTX4090", 23.52, (8, 9), "torch's message in Soul-AILab/SoulX-FlashTalk issue 5"),
    CardType("A10", 22.06, (8, 6), NOT_MEASURED + "; nvidia-smi's total is 22.49 (modal-labs/modal-client pull 2797)"),
    CardType("L4", 22.03, (8, 9), NOT_MEASURED + "; nvidia-smi's total is 22.49 (modal-labs/modal-client pull 2797)"),
    CardType("A100-40GB", 39.38, (8, 0), NOT_MEASURED + "; 39.50 in TianheWu/CoSeR issue 10"),
    CardType("A100-80GB", 79.15, (8, 0), NOT_MEASURED + "; 79.25 in levihsu/OOTDiffusion issue 235"),
    CardType("H100", 79.10, (9, 0), NOT_MEASURED + "; nvidia-smi's total is 79.65 (modal-labs/modal-client pull 2797)"),
    CardType("H200", 139.7, (9, 0), NOT_MEASURED),
)


def card_named(name: str) -> CardType:
    """The card that this is the name of, or its beginning; UserError where it is that of none, or of several."""
    wanted = name.lower().replace(" ", "").replace("-", "")
    cards = {card.name.lower().replace("-", ""): card for card in CARDS}
    found = [card for key, card in cards.items() if wanted and key.startswith(wanted)]
    if wanted in cards:  # A10 is also how A100 begins
        found = [cards[wanted]]
    if len(found) == 1:
        return found[0]
    names = [card.name for card in found or CARDS]
    raise UserError(
        f"--gpu {name}: which of {', '.join(names)}?" if found
        else f"--gpu {name}: not a known card{nearest(name, names)}: {', '.join(names)}"
    )  # fmt: skip
