"""NVIDIA cards: how much memory a program finds there, and what else decides whether a run works.

`memory` is what torch.cuda.get_device_properties().total_memory shows, in GiB, the lowest value seen in
public reports: drivers and error correction keep some of what the label promises.
"""

from dataclasses import dataclass

GiB = 2**30


@dataclass(frozen=True)
class CardType:
    name: str
    memory: float
    capability: tuple[int, int]

    @property
    def bytes(self) -> int:
        return int(self.memory * GiB)

    @property
    def bf16(self) -> bool:
        """In hardware; older cards emulate it, slowly."""
        return self.capability >= (8, 0)

    @property
    def attention(self) -> str:
        """The kernels that it has beside the plain one."""
        return "efficient, flash" if self.capability >= (8, 0) else "efficient"

    @property
    def wheel(self) -> str:
        """The builds of torch that carry kernels for it (Volta and Pascal: those for CUDA 12.6 only)."""
        return "any" if self.capability >= (7, 5) else "cu126"


CARDS = (
    CardType("P100", 15.89, (6, 0)),
    CardType("T4", 14.56, (7, 5)),
    CardType("V100-16GB", 15.77, (7, 0)),
    CardType("V100-32GB", 31.73, (7, 0)),
    CardType("RTX3060", 11.76, (8, 6)),
    CardType("RTX3090", 23.68, (8, 6)),
    CardType("RTX4090", 23.64, (8, 9)),
    CardType("A10", 22.06, (8, 6)),
    CardType("L4", 22.03, (8, 9)),
    CardType("A100-40GB", 39.38, (8, 0)),
    CardType("A100-80GB", 79.15, (8, 0)),
    CardType("H100", 79.10, (9, 0)),
    CardType("H200", 139.7, (9, 0)),
)
