"""The account held against a card: the very steps, run on the CUDA card that is here, beside their predictions.

A large card is made to behave as one of 16 GB by torch.cuda.set_per_process_memory_fraction, so that what is
said to fit is put to the test. The record names every miss.
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

from train.base.errors import UserError
from train.engine.device import pick_device
from train.memory.allocator import served
from train.memory.fit import FEW, account_of, fits, largest_batch, on_card, runs
from train.memory.gpus import CardType
from train.memory.overhead import context, cublas
from train.memory.report import gib, mib, table
from train.memory.scenario import Setting
from train.memory.stages import begin, take_step

MiB = 2**20
IMITATED = 15.89  # GiB of a 16 GB card


@dataclass(frozen=True)
class Peaks:
    """Bytes at most: that operators asked for, in blocks of the allocator, in its segments."""

    requested: int
    allocated: int
    reserved: int


Measurement = Callable[[Setting], Peaks | None]
"""What a run of this setting took; None where it ran out of memory."""


def measure(setting: Setting, path: Path) -> str:
    """Run, compare, write the record to `path`; one sentence about it. UserError where there is no card."""
    if pick_device().type != "cuda":
        raise UserError("--measure runs the steps on a CUDA card, and this machine has none")
    if path.exists():
        raise UserError(f"--measure {path}: is there already; give the name of a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # what cannot be written is refused now, and not when all has been measured
    path.unlink()
    card = CardType("16 GB, imitated", IMITATED, torch.cuda.get_device_capability(), "imitated")
    run = partial(on_cuda, limit=card.bytes - context(card).bytes)
    cases = [case for case in grid(setting) if runs(case, card)]
    rows = [compared(case, card, run) for case in cases]
    ends = [largest(case, card, run) for case in ends_of(setting)]
    path.write_text(record(machine(), rows, ends))
    return f"{verdict(rows, ends)}\n{path} holds the record."


def grid(setting: Setting) -> list[Setting]:
    """{no, fp16, bf16} x checkpointing x {cached, in-loop} latents x {foreach, fused} x 3 batches."""
    start = max(FEW, setting.training.batch_size // 2)
    if setting.stage == "sample":  # in fp32, whatever a training does
        return [setting.with_training(batch_size=batch) for batch in (start, 2 * start, 4 * start)]
    cached = (True, False) if setting.stage == "ldm" else (True,)
    return [
        setting.with_latents(latents).with_fused(fused).with_training(
            mixed_precision=precision, gradient_checkpointing=again, batch_size=batch
        )
        for precision, again, latents, fused, batch in product(
            ("no", "fp16", "bf16"), (False, True), cached, (False, True), (start, 2 * start, 4 * start)
        )
    ]


def ends_of(setting: Setting) -> list[Setting]:
    """The runs whose largest batch is looked for."""
    if setting.stage == "sample":
        return [setting]
    return [
        setting.with_training(mixed_precision=precision, gradient_checkpointing=again)
        for precision, again in product(("no", "fp16"), (False, True))
    ]


def on_cuda(setting: Setting, limit: int) -> Peaks | None:
    """What a run takes, from its models on, when torch's allocator may have `limit` bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
    torch.cuda.reset_peak_memory_stats()
    setting = replace(setting, device="cuda")
    try:
        take_step(begin(setting), setting)
    except torch.cuda.OutOfMemoryError:
        return None
    except UserError as error:  # the optimizer's (train/engine/step.py)
        if not isinstance(error.__context__, torch.cuda.OutOfMemoryError):
            raise
        return None
    stats = torch.cuda.memory_stats()
    return Peaks(*(stats[f"{what}_bytes.all.peak"] for what in ("requested", "allocated", "reserved")))


# ---- comparisons


@dataclass(frozen=True)
class Row:
    """One run: what was predicted, and what was measured (None: it ran out of memory)."""

    name: str
    fits: bool
    predicted: Peaks
    measured: Peaks | None

    def error(self, what: str) -> int:
        """Bytes by which the prediction is too high; negative: too low."""
        return getattr(self.predicted, what) - getattr(self.measured, what)

    @property
    def missed(self) -> bool:
        """By more than max(2%, 64 MiB) of what is allocated; and what is said to fit must fit."""
        if self.measured is None:
            return self.fits
        return abs(self.error("allocated")) > max(0.02 * self.measured.allocated, 64 * MiB)


@dataclass(frozen=True)
class End:
    """The largest batch of a run, as predicted and as found by running it."""

    name: str
    predicted: int
    true: int

    @property
    def missed(self) -> bool:
        return self.predicted > self.true or self.predicted < 0.95 * self.true


def compared(setting: Setting, card: CardType, run: Measurement) -> Row:
    account = account_of(on_card(setting, card))
    workspace, given = cublas(card, account).bytes, served(account)
    predicted = Peaks(
        account.peak().bytes + workspace, given.peak_allocated + workspace, given.peak_reserved + workspace
    )
    return Row(name(setting), fits(account, card), predicted, run(setting))


def largest(setting: Setting, card: CardType, run: Measurement) -> End:
    """Bisection by running, from the predicted batch on."""
    predicted = largest_batch(setting, card)
    low, high, batch, step = 0, None, max(predicted, 1), 1
    while high is None or high - low > 1:
        if run(setting.with_training(batch_size=batch)) is None:
            high = batch
        else:
            low = batch
        if high is None:
            batch, step = batch + step, 2 * step
        elif low == 0:
            batch, step = max(batch - step, 1), 2 * step
            if high == 1:
                break
        else:
            batch = (low + high) // 2
    return End(name(setting, batch=False), predicted, low)


def name(setting: Setting, batch: bool = True) -> str:
    training = setting.training
    words = [setting.stage]
    if setting.stage != "sample":
        words += [training.mixed_precision, "fused" if training.optimizer.fused else "foreach"]
        words += ["checkpointing"] if training.gradient_checkpointing else []
    words += ["in-loop"] if setting.stage == "ldm" and not setting.config.latents.cache_latents else []
    return " ".join(words + [f"batch {training.batch_size}"] * batch)


# ---- the record


def verdict(rows: Sequence[Row], ends: Sequence[End]) -> str:
    errors = [abs(row.error("allocated")) / row.measured.allocated for row in rows if row.measured]
    missed = [row.name for row in rows if row.missed] + [end.name + " (largest batch)" for end in ends if end.missed]
    said = (
        f"Of the peak allocated, {len(errors)} predictions were off by {100 * max(errors):.2f}% at most and "
        f"{100 * median(errors):.2f}% in the median."
        if errors
        else "No run fitted."
    )
    return f"{said} Missed: {'; '.join(missed) or 'nothing'}."


def record(machine: dict[str, str], rows: Sequence[Row], ends: Sequence[End]) -> str:
    """The whole comparison in Markdown."""
    cells = []
    for row in rows:
        line = [row.name, "yes" if row.fits else "no", "yes" if row.measured else "no"]
        for what in ("requested", "allocated", "reserved"):
            line.append(mib(getattr(row.predicted, what)))
            line += ["-", "-"] if row.measured is None else [
                mib(getattr(row.measured, what)), f"{100 * row.error(what) / getattr(row.measured, what):+.2f}%"
            ]  # fmt: skip
        cells.append([*line, "MISS" if row.missed else ""])
    headings = ["run (MiB)", "said to fit", "fitted"]
    for what in ("requested", "allocated", "reserved"):
        headings += [f"{what}, predicted", "measured", "off by"]
    batches = [(end.name, str(end.predicted), str(end.true), "MISS" if end.missed else "") for end in ends]
    return "\n".join([
        "# The account of memory beside a card", "",
        "Written by `python -m train.memcheck --measure`. Every run is the training's own step, from its models on,",
        f"with the allocator held to a 16 GB card ({IMITATED} GiB less the CUDA context). A miss: more than",
        "max(2%, 64 MiB) of what is allocated, a run said to fit that does not, or a largest batch that does not fit",
        "or is less than 95% of the true one. The cuBLAS workspace is part of each prediction.", "",
        *(f"- {key}: {value}" for key, value in machine.items()), "",
        verdict(rows, ends), "",
        table([*headings, ""], cells), "",
        table(("largest batch", "predicted", "true", ""), batches), "",
    ])  # fmt: skip


def machine() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    driver = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "card": f"{properties.name}, {gib(properties.total_memory)} GiB, sm_{properties.major}{properties.minor}",
        "driver": driver,
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "commit": _said(["git", "describe", "--always", "--dirty", "--abbrev=40"]),
    }


def _said(command: list[str]) -> str:
    """The first line that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return f"not known ({command[0]} is not here)"
    return done.stdout.strip().split("\n")[0] or f"not known ({command[0]}: {done.stderr.strip()})"
