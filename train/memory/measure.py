"""Measures real steps on this machine's GPU and compares them with their predictions.

torch's allocator is limited to the memory of a 16 GB GPU, so that runs predicted to fit can fail.
"""

import gc
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch

from train.base.errors import UserError, out_of_memory, require
from train.base.markdown import table
from train.base.units import MiB, gib, mib
from train.config.sections import MixedPrecision
from train.engine.device import pick_device
from train.memory.allocator import Peaks, peaks_of
from train.memory.fit import MIN_REGULAR_BATCH, account_of, fits, largest_batch, on_gpu, runs
from train.memory.gpus import GPU
from train.memory.overhead import CONTEXT, cublas
from train.memory.scenario import Scenario
from train.memory.step import prepare

IMITATED = 15.89  # GiB of memory that a 16 GB GPU has

Measurement = Callable[[Scenario], Peaks | None]
"""Runs a scenario and returns its peaks; None if it ran out of memory."""


def measure(scenario: Scenario, path: Path) -> str:
    """Run the grid, write the record to `path`, and return a summary. UserError without a CUDA GPU."""
    require(pick_device().type == "cuda", "--measure runs the steps on a CUDA card, and this machine has none")
    require(not path.exists(), f"--measure {path}: is there already; give the name of a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # fail now, not after the measurements, if the file cannot be written
    path.unlink()
    gpu = GPU("16 GB, imitated", IMITATED, torch.cuda.get_device_capability(), "imitated")
    run = partial(on_cuda, limit=gpu.bytes - CONTEXT.bytes)
    cases = [case for case in grid(scenario) if runs(case, gpu)]
    rows = [compared(case, gpu, run) for case in cases]
    batches = [find_largest_batch(case, gpu, run) for case in largest_batch_cases(scenario)]
    path.write_text(record(machine(), rows, batches))
    return f"{verdict(rows, batches)}\n{path} holds the record."


def grid(scenario: Scenario) -> list[Scenario]:
    """The runs to compare: precision x checkpointing x cached latents x fused AdamW x three batch sizes."""
    start = max(MIN_REGULAR_BATCH, scenario.micro_batch // 2)
    batches = (start, 2 * start, 4 * start)
    if not scenario.trains:  # sampling is always in fp32
        return [scenario.with_micro_batch(batch) for batch in batches]
    cached_or_not = (True, False) if scenario.stage == "ldm" else (True,)
    return [
        run.with_latents(cached).with_fused(fused).with_micro_batch(batch)
        for run in checkpointed_or_not(scenario, "no", "fp16", "bf16")
        for cached, fused, batch in product(cached_or_not, (False, True), batches)
    ]


def checkpointed_or_not(scenario: Scenario, *precisions: MixedPrecision) -> list[Scenario]:
    return [
        scenario.with_training(mixed_precision=precision, gradient_checkpointing=checkpointing)
        for precision, checkpointing in product(precisions, (False, True))
    ]


def largest_batch_cases(scenario: Scenario) -> list[Scenario]:
    """The runs whose largest batch is measured."""
    return checkpointed_or_not(scenario, "no", "fp16") if scenario.trains else [scenario]


def on_cuda(scenario: Scenario, limit: int) -> Peaks | None:
    """The peaks of a run, its models included, when torch's allocator may use `limit` bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
    torch.cuda.reset_peak_memory_stats()
    try:
        prepare(replace(scenario, device="cuda")).take()
    except (RuntimeError, MemoryError, UserError) as error:  # UserError: in the optimizer (train/engine/step.py)
        if not out_of_memory(error) and not out_of_memory(error.__context__):
            raise
        return None
    stats = torch.cuda.memory_stats()
    return Peaks(*(stats[f"{what}_bytes.all.peak"] for what in Peaks._fields))


# ---- comparisons


@dataclass(frozen=True)
class Row:
    """One run of the grid, predicted and measured (None if it ran out of memory)."""

    name: str
    fits: bool
    predicted: Peaks
    measured: Peaks | None

    def error(self, what: str) -> int:
        """Predicted minus measured bytes."""
        return getattr(self.predicted, what) - getattr(self.measured, what)

    @property
    def missed(self) -> bool:
        """Whether the allocated bytes are off by more than max(2%, 64 MiB), or a run predicted to fit does not."""
        if not self.measured:
            return self.fits
        return abs(self.error("allocated")) > max(0.02 * self.measured.allocated, 64 * MiB)


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch of a run, as predicted and as found by running it."""

    name: str
    predicted: int
    true: int

    @property
    def missed(self) -> bool:
        """Whether it does not fit, or is smaller than its margins for scratch and fragmentation make it."""
        return self.predicted > self.true or self.predicted < 0.85 * self.true


def compared(scenario: Scenario, gpu: GPU, run: Measurement) -> Row:
    account = account_of(on_gpu(scenario, gpu))
    predicted = peaks_of(account, cublas(gpu, account).bytes)
    return Row(case_name(scenario), fits(account, gpu), predicted, run(scenario))


def find_largest_batch(scenario: Scenario, gpu: GPU, run: Measurement) -> LargestBatch:
    """Find the largest batch by running, with a bisection that starts from the predicted batch."""
    predicted = largest_batch(scenario, gpu)
    low, high, batch, step = 0, None, max(predicted, 1), 1
    while high is None or high - low > 1:
        fitted = run(scenario.with_micro_batch(batch)) is not None
        low, high = (batch, high) if fitted else (low, batch)
        if high is None:
            batch, step = batch + step, 2 * step
        elif low == 0:
            batch, step = max(batch - step, 1), 2 * step
        else:
            batch = (low + high) // 2
    return LargestBatch(case_name(scenario, batch=False), predicted, low)


def case_name(scenario: Scenario, batch: bool = True) -> str:
    training, words = scenario.training, [scenario.stage]
    if scenario.trains:
        words += [training.mixed_precision, "fused" if training.optimizer.fused else "foreach"]
        words += ["checkpointing"] * training.gradient_checkpointing
    words += ["in-loop"] * (scenario.stage == "ldm" and not scenario.config.latents.cache_latents)
    return " ".join(words + [f"batch {scenario.micro_batch}"] * batch)


# ---- the record


def verdict(rows: Sequence[Row], batches: Sequence[LargestBatch]) -> str:
    errors = [abs(row.error("allocated")) / row.measured.allocated for row in rows if row.measured]
    missed = [row.name for row in rows if row.missed]
    missed += [batch.name + " (largest batch)" for batch in batches if batch.missed]
    accuracy = "No run fitted." if not errors else (
        f"Of the peak allocated, {len(errors)} predictions were off by {100 * max(errors):.2f}% at most and "
        f"{100 * median(errors):.2f}% in the median."
    )  # fmt: skip
    return f"{accuracy} Missed: {'; '.join(missed) or 'nothing'}."


def record(facts: dict[str, str], rows: Sequence[Row], batches: Sequence[LargestBatch]) -> str:
    """The whole comparison in Markdown."""
    cells = []
    for row in rows:
        words = [row.name, "yes" if row.fits else "no", "yes" if row.measured else "no"]
        for predicted, measured in zip(row.predicted, row.measured or [None] * 3, strict=True):
            beside = [mib(measured), f"{100 * (predicted - measured) / measured:+.2f}%"] if measured else ["-", "-"]
            words += [mib(predicted), *beside]
        cells.append([*words, "MISS" if row.missed else ""])
    headings = ["run (MiB)", "said to fit", "fitted"]
    for what in Peaks._fields:
        headings += [f"{what}, predicted", "measured", "off by"]
    batch_cells = [(b.name, str(b.predicted), str(b.true), "MISS" if b.missed else "") for b in batches]
    return "\n".join([
        "# The account of memory beside a card", "",
        "Written by `python -m train.memcheck --measure`. Every run is the training's own step, from its models on,",
        f"with the allocator held to a 16 GB card ({IMITATED} GiB less the CUDA context). A miss: more than",
        "max(2%, 64 MiB) of what is allocated, a run said to fit that does not, or a largest batch that does not fit",
        "or is less than 85% of the true one. The cuBLAS workspace is part of each prediction.", "",
        *(f"- {key}: {value}" for key, value in facts.items()), "",
        verdict(rows, batches), "",
        table([*headings, ""], cells), "",
        table(("largest batch", "predicted", "true", ""), batch_cells), "",
    ])  # fmt: skip


def machine() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": f"{properties.name}, {gib(properties.total_memory)} GiB, sm_{properties.major}{properties.minor}",
        "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "commit": _first_line(["git", "describe", "--always", "--dirty", "--abbrev=40"]),
    }


def _first_line(command: list[str]) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return f"not known ({command[0]} is not here)"
    return process.stdout.strip().split("\n")[0] or f"not known ({command[0]}: {process.stderr.strip()})"
