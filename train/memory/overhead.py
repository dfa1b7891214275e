"""What takes memory and is no tensor of this program: each with its size and where that number is from.

None of it is in the account's table, and none of it can be traced without a GPU.
"""

from dataclasses import dataclass

from train.memory.account import Account
from train.memory.allocator import rounded, served
from train.memory.gpus import CardType

MiB = 2**20


@dataclass(frozen=True)
class Outside:
    name: str
    bytes: int | None
    """None: nobody can say without running it."""
    source: str


def context(card: CardType | None) -> Outside:
    """Beside torch's allocator: taken off the card before it begins."""
    return Outside(
        "CUDA context", 500 * MiB,
        "predicted: 0.3 to 0.5 GB in public reports, the upper end here; outside torch's counters",
    )  # fmt: skip


def cublas(card: CardType | None, account: Account) -> Outside:
    """In torch's allocator, from a thread's first matrix product on: autograd goes backward in a thread of its own."""
    hopper = card is not None and card.capability >= (9, 0)
    size = 32 * MiB if hopper else 2 * 4096 * 1024 + 8 * 16 * 1024
    threads = 2 if account.forward_ends else 1
    return Outside(
        "cuBLAS workspaces", threads * size,
        "predicted: torch's default for a handle, :4096:2:16:8, on Hopper 32 MiB; each thread that multiplies has a "
        f"handle, here {threads} (CublasHandlePool.cpp)",
    )  # fmt: skip


def lines(account: Account, card: CardType | None, processes: int) -> list[Outside]:
    """All that comes on top of the bytes that tensors ask for, at the peak, on the card of one of the processes."""
    requested = int(account.live().max())
    units = int(account.live(rounded(account.bytes)).max())
    given = served(account)
    found = [
        Outside("rounding up to 512 bytes", units - requested, "predicted: exact, from the trace"),
        Outside("remainders not split off", given.peak_allocated - units, "predicted: the allocator's rules, replayed"),
        Outside("reserved but free", given.peak_reserved - given.peak_allocated,
                "predicted: the same; fragmentation and segments kept for later"),
        cublas(card, account),
        Outside("cuDNN workspace", None,
                "not known: what cuDNN's algorithm wants, at most what is free; when that is refused torch goes on to "
                "the next algorithm (Conv_v8.cpp, run_single_conv), so that it decides no fit"),
        Outside("scratch within kernels", None,
                "not known: what an operator takes and gives back inside, such as the float32 sums of attention's "
                "backward pass"),
        context(card),
    ]  # fmt: skip
    if processes > 1:
        source = "not known: what the cards exchange gradients through; outside torch's counters"
        found.append(Outside("NCCL buffers", None, source))
    return found
