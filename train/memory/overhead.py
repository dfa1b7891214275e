"""GPU memory beyond the bytes that tensors request: the size of each part, and the source of that number.

None of it is in the account's table.
"""

from dataclasses import dataclass

from train.base.units import MiB, mib
from train.memory.account import Account
from train.memory.allocator import peaks_of, rounded, served
from train.memory.gpus import GPU


@dataclass(frozen=True)
class Overhead:
    name: str
    bytes: int | None  # None: unknown without running it
    source: str


CONTEXT = Overhead(
    "CUDA context", 500 * MiB,
    "predicted: 0.3 to 0.5 GB in public reports, the upper end here; outside torch's counters",
)  # fmt: skip


def cublas(gpu: GPU | None, account: Account) -> Overhead:
    """cuBLAS workspaces, in torch's allocator: one per thread that multiplies matrices; autograd has its own."""
    hopper = gpu is not None and gpu.capability >= (9, 0)
    size = 32 * MiB if hopper else 2 * 4096 * 1024 + 8 * 16 * 1024
    threads = 2 if account.forward_ends else 1
    return Overhead(
        "cuBLAS workspaces", threads * size,
        "predicted: torch's default for a handle, :4096:2:16:8, on Hopper 32 MiB; each thread that multiplies has a "
        f"handle, here {threads} (CublasHandlePool.cpp)",
    )  # fmt: skip


def fragmentation(free: int) -> int:
    """Bytes, of those that are free for torch's allocator, that are kept for what is not replayed of its history.

    Replays of other histories (images encoded before the first step, further steps after a validation), with
    checkpointing and without, had room for up to 3% fewer images at once.
    """
    return free * 3 // 100


def overheads(account: Account, gpu: GPU | None, processes: int) -> list[Overhead]:
    """All overheads at the peak, on the GPU of one process."""
    peaks, rounded_up = peaks_of(account), int(account.live(rounded(account.bytes)).max())
    with_scratch = served(account, with_scratch=True).peak_reserved
    found = [
        Overhead("rounding up to 512 bytes", rounded_up - peaks.requested, "predicted: exact, from the trace"),
        Overhead("remainders not split off", peaks.allocated - rounded_up,
                 "predicted: the allocator's rules, replayed"),
        Overhead("reserved but free", peaks.reserved - peaks.allocated,
                 "predicted: the same; fragmentation and segments kept for later"),
        cublas(gpu, account),
        Overhead("cuDNN workspace", None,
                 "not known: what cuDNN's algorithm wants, at most what is free; when that is refused torch goes on to "
                 "the next algorithm (Conv_v8.cpp, run_single_conv), so that it decides no fit"),
        Overhead("scratch within kernels, at most", max(with_scratch - peaks.reserved, 0),
                 f"predicted: layout copies of convolutions, float32 sums of attention, {mib(account.scratch())} MiB "
                 "in one kernel at most; here what of it finds no room in what is reserved"),
        Overhead("room for fragmentation", fragmentation(gpu.bytes - CONTEXT.bytes) if gpu else None,
                 "a margin: 3% of what the card has for the allocator, whose later steps are not replayed"),
        CONTEXT,
    ]  # fmt: skip
    nccl = "not known: what the cards exchange gradients through; outside torch's counters"
    return [*found, Overhead("NCCL buffers", None, nccl)] if processes > 1 else found
