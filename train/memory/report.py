"""Reports of the account: Markdown tables for people, a dictionary for programs."""

import math
from dataclasses import asdict
from functools import partial
from textwrap import fill

from train.base.markdown import table
from train.base.units import GiB, gib, mib
from train.base.workers import on_all_cores
from train.memory.account import CATEGORIES, HEADINGS, Account
from train.memory.advice import cheapest_that_fits, levers
from train.memory.allocator import peaks_of
from train.memory.components import Component, without_effect
from train.memory.fit import (
    MOST_ELEMENTS,
    account_of,
    fits,
    fits_traced,
    largest_batch,
    left,
    most_counted,
    on_gpu,
    room,
    runs,
)
from train.memory.gpus import GPU, GPUS
from train.memory.overhead import overheads
from train.memory.scenario import Scenario

WIDTH = 120  # characters in a line
PREDICTED = "predicted: no GPU has confirmed these figures"


def title(scenario: Scenario, gpu: GPU | None) -> str:
    """The heading of the report: the run and the GPU."""
    training, config = scenario.training, scenario.config
    words = [f"stage {scenario.stage}", f"batch {scenario.micro_batch}"]
    if scenario.trains:
        form = "fused" if training.optimizer.fused else "foreach"
        words += [f"x {training.gradient_accumulation_steps} accumulated", f"precision {training.mixed_precision}",
                  f"checkpointing {'on' if training.gradient_checkpointing else 'off'}", f"AdamW {form}"]  # fmt: skip
        words += [f"one of {scenario.processes} cards"] if scenario.processes > 1 else []
    if scenario.stage == "ldm":
        words.append("cached latents" if config.latents.cache_latents else "latents in the loop")
    if scenario.stage == "sample":
        words += ["precision no", f"sampler {config.sampling.sampler}", f"guidance {config.sampling.guidance:g}"]
    where = f"on {gpu.name}" if gpu else "on any card"
    return f"## Memory {where}: {', '.join(words)}"


def answer(scenario: Scenario, rows: list[dict]) -> str:
    """The report in a sentence: does the run fit one GPU, or all that are known, and with how much room?"""
    runs_of = f"with batch {scenario.micro_batch}"
    fitting = [row for row in rows if row.get("fits")]
    if len(rows) > 1:
        start = f"Fits {len(fitting)} of {len(rows)} known cards {runs_of}"
        if not fitting:
            return f"{start}."
        smallest = min(fitting, key=lambda row: row["bytes"])
        return f"{start}; the smallest of them is {_a(smallest)}, with {_room(scenario, smallest)} (predicted)."
    (row,) = rows
    if row.get("fits"):
        return f"Fits {_a(row)} {runs_of}, {_room(scenario, row)} (predicted)."
    levers = f"it fits with {', '.join(row['fits_with'])}" if row["fits_with"] else "nothing makes it fit"
    if not row["runs"]:
        return f"Does not run on {_a(row)}, which has no bf16; {levers} (predicted)."
    missing = f", where {roughly(-row['left'] / GiB, up=True)} GiB are missing" if row["left"] < 0 else ""
    return f"Does not fit {_a(row)} {runs_of}{missing}; {levers} (predicted)."


def _a(row: dict) -> str:
    return f"{'an' if row['card'][0] in 'AHLR' else 'a'} {row['card']}"


def _room(scenario: Scenario, row: dict) -> str:
    most = row[variant_of(scenario)]
    images = f"up to about {roughly(most)} images" if most > 1 else "one image"
    return f"{roughly(row['left'] / GiB)} GiB left; {images} at once"


def roughly(number: float, up: bool = False) -> str:
    """Two significant digits, which promise less than the number, or more (`up`); at least hundredths."""
    unit = 10.0 ** max(math.floor(math.log10(max(number, 1e-9))) - 1, -2)
    return f"{round((math.ceil if up else math.floor)(round(number / unit, 6)) * unit, 2):,g}"


# ---- what follows from shapes


COMPONENT_COLUMNS = ("parameters", "weights", "gradients", "optimizer_state", "ema", "half_copies")


def exact(scenario: Scenario, parts: list[Component]) -> str:
    """Table of the bytes that follow from shapes alone; they are the same on every GPU."""
    counts = {part.name: [getattr(part, column) for column in COMPONENT_COLUMNS] for part in parts}
    counts["total"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[name, f"{parameters:,}", *map(mib, sizes)] for name, (parameters, *sizes) in counts.items()]
    headings = ("MiB", "parameters", "weights", "gradients", "optimizer state", "EMA", "half copies")
    total = sum(counts["total"][1:])
    text = [table(headings, rows), f"\n{total:,} bytes = {gib(total)} GiB: exact, before any activation."]
    if scenario.ranks > 1:
        text.append(f"The optimizer's state is that of all {scenario.ranks} cards, which divide it.")
    if idle := without_effect(scenario.config, parts):
        lacking = ": no gradient, no optimizer state, no half copy" if scenario.trains else ""
        text.append(f"One context token leaves {idle:,} parameters of the UNet without effect{lacking}.")
    return "\n".join(text)


Results = dict[GPU | Scenario, dict]
"""Of a GPU: whether the run fits, the bytes left, the largest micro-batches (and whether elements limit them, not
bytes), and what would make it fit. Of the run with a lever pulled alone: its peaks in bytes, the phase that the peak
is in, and the peak of every phase."""


# ---- what follows from the trace


def by_component(account: Account, clock: int) -> str:
    sums = account.table(clock)
    rows = [[name, *(mib(row[c]) for c in CATEGORIES), mib(sum(row.values()))] for name, row in sums.items()]
    totals = [sum(row[c] for row in sums.values()) for c in CATEGORIES]
    rows.append(["total", *map(mib, totals), mib(sum(totals))])
    return table(("MiB at the peak", *HEADINGS.values(), "total"), rows)


def peak_in_words(account: Account) -> str:
    peak = account.peak()
    where = f"in the phase {peak.phase}, operator {peak.operator}" + (f" in {peak.module}" if peak.module else "")
    phases = ", ".join(f"{name} {gib(account.peak(name).bytes)}" for name in account.phases())
    text = [fill(f"Peak: {peak.bytes:,} bytes = {gib(peak.bytes)} GiB, {where}.", WIDTH),
            fill(f"The peak of each phase, GiB: {phases}.", WIDTH),
            "The largest tensors alive then, beside weights and what is made of them:\n"]  # fmt: skip
    for size, storage in account.largest(peak.clock, 5):
        what = f"{HEADINGS[storage.category or 'temporaries']}, {storage.phase}, {storage.operator} {storage.module}"
        text.append(f"- {mib(size)} MiB: {what}".rstrip())
    return "\n".join(text)


def beside(account: Account, gpu: GPU | None, processes: int) -> str:
    """Table of the memory beyond the tensors' bytes, and the sources of its numbers."""
    found = overheads(account, gpu, processes)
    rows = [(part.name, "?" if part.bytes is None else mib(part.bytes)) for part in found]
    sources = [fill(f"- {part.name}: {part.source}", WIDTH, subsequent_indent="  ") for part in found]
    heading = ("beside the tensors, never added to them", "MiB")
    return "\n".join([table(heading, rows), "\nWhere that is from:\n", *sources])


MICRO_BATCH = (
    "The largest micro-batch is of images that go through the model at once (batch_size). A step may learn from more:\n"
    "batch_size x gradient_accumulation_steps."
)
VARIANTS = {"largest_batch": "without checkpointing", "largest_batch_checkpointed": "with checkpointing"}


def variants(scenario: Scenario) -> dict[str, Scenario]:
    """The runs whose largest batch is reported, by the keys of VARIANTS."""
    if not scenario.trains:
        return {"largest_batch": scenario}
    keys = zip(VARIANTS, (False, True), strict=True)
    return {key: scenario.with_training(gradient_checkpointing=checkpointing) for key, checkpointing in keys}


def variant_of(scenario: Scenario) -> str:
    """The key in VARIANTS of the run itself."""
    return next(key for key, variant in variants(scenario).items() if variant == scenario)


def compute_results(scenario: Scenario, chosen: GPU | None) -> Results:
    """Compute the results for the `chosen` GPU, or all GPUs, on all cores; runs that share a trace are one task.

    Levers are pulled on the `chosen` GPU, and its largest batches are also checked with traces of their own.
    """
    gpus_by_run: dict[Scenario, list[GPU]] = {}  # a run differs between GPUs in its attention kernel
    for gpu in [chosen] if chosen else GPUS:
        gpus_by_run.setdefault(on_gpu(scenario, gpu), []).append(gpu)
    pulled = [lever.pull(scenario) for lever in levers(scenario)]
    others = dict.fromkeys(on_gpu(other, chosen) for other in pulled)
    arguments = {
        variant: (run, name, gpus_by_run[run])
        for run in sorted(gpus_by_run, key=lambda run: -len(gpus_by_run[run]))
        for name, variant in variants(run).items()
    }
    tasks = [partial(_results_on_gpus, *arguments[other], other, other in others, chosen) for other in arguments]
    tasks += [partial(_results_of_run, other) for other in others if other not in arguments]
    merged: Results = {}
    for results in on_all_cores(tasks):
        for key, row in results.items():
            merged.setdefault(key, {}).update(row)
    return merged


def _results_on_gpus(
    run: Scenario, name: str, gpus: list[GPU], variant: Scenario, with_peaks: bool, chosen: GPU | None
) -> Results:
    """The largest batch of a variant on GPUs with the same kernels; for the run itself, also how it fits."""
    rows: Results = {gpu: {} for gpu in gpus}
    for gpu, row in rows.items():
        if runs(variant, gpu):
            batch = row[name] = largest_batch(variant, gpu)
            row[f"{name}_counted"] = batch == most_counted(variant, gpu)
            if batch and gpu == chosen:
                row[f"{name}_traced"] = [fits_traced(variant, size, gpu) for size in (batch, batch + 1)]
            if variant == run:
                row |= {"fits": fits(account_of(run), gpu), "left": left(account_of(run), room(gpu, account_of(run)))}
        if variant == run and not row.get("fits"):
            row["fits_with"] = cheapest_that_fits(run, gpu)
    return rows | (_results_of_run(variant) if with_peaks else {})


def _results_of_run(scenario: Scenario) -> Results:
    account = account_of(scenario)
    phases = {name: account.peak(name).bytes for name in account.phases()}
    return {scenario: peaks_of(account)._asdict() | {"phase": account.peak().phase, "phases": phases}}


def on_gpus(results: Results) -> list[dict]:
    """One row per GPU: its properties, the builds of torch that have kernels for it, and its results."""
    return [
        {"card": gpu.name, "bytes": gpu.bytes, "bytes_from": gpu.source, "capability": gpu.capability,
         "attention": gpu.attention, "bf16": gpu.bf16,
         "wheel": "any" if gpu.capability >= (7, 5) else "cu126",  # Volta and Pascal: only those for CUDA 12.6
         "runs": "fits" in results[gpu]}
        | results[gpu]
        for gpu in GPUS if gpu in results
    ]  # fmt: skip


def gpus_table(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        verdict = "no bf16" if not row["runs"] else "yes" if row["fits"] else "no"
        batches = [str(row.get(name) or "-") for name in ("largest_batch", "largest_batch_checkpointed")]
        cells.append([row["card"], gib(row["bytes"]), verdict, gib(row["left"]) if row["runs"] else "-", *batches,
                      "{}.{}".format(*row["capability"]), row["attention"], "yes" if row["bf16"] else "no",
                      row["wheel"]])  # fmt: skip
    headings = ("card", "GiB", "fits", "left", "largest micro-batch", "with checkpointing", "capability", "attention",
                "bf16", "wheel")  # fmt: skip
    text = [table(headings, cells), f"\n{MICRO_BATCH}"]
    if counted := [row["card"] for row in rows if any(row.get(f"{name}_counted") for name in VARIANTS)]:
        text.append(fill(f"More elements than an int counts ({MOST_ELEMENTS:,} in one tensor), and not bytes, limit it "
                         f"on {', '.join(counted)}.", WIDTH))  # fmt: skip
    for row in rows:
        if not row.get("fits"):
            names = row["fits_with"]
            text.append(f"\n{row['card']}: " + (f"fits with {', '.join(names)}." if names else "nothing makes it fit."))
    return "\n".join(text)


def one_gpu(row: dict) -> str:
    """The source of the GPU's memory size, and whether its largest batches and the next ones fit when traced."""
    text = [fill(f"The card's bytes: {row['bytes_from']}.", WIDTH)]
    for name, words in VARIANTS.items():
        if traced := row.get(f"{name}_traced"):
            checks = [f"{row[name] + i} {'fits' if fits else 'does not fit'}" for i, fits in enumerate(traced)]
            text.append(f"Traced themselves, {words}: {', '.join(checks)}.")
    return "\n".join(text)


def advice(scenario: Scenario, account: Account, results: Results, gpu: GPU | None) -> list[dict]:
    """The bytes that each lever saves when pulled alone, the largest saving first; only those that save any.

    Beside them what it saves in the phase that the peak is in now, and the phase that it is in then.
    """
    before, now, rows = peaks_of(account)._asdict(), account.peak(), []
    for lever in levers(scenario):
        after = results[on_gpu(lever.pull(scenario), gpu)]
        saved = {what: before[what] - after[what] for what in ("allocated", "reserved")}
        in_phase = now.bytes - after["phases"].get(now.phase, 0)
        rows.append({"lever": lever.name, "cost": lever.cost, "in_phase": in_phase, "then": after["phase"], **saved})
    return sorted((row for row in rows if row["allocated"] > 0), key=lambda row: -row["allocated"])


def advice_table(rows: list[dict], phase: str) -> str:
    """`phase` is the one that the peak is in without a lever."""
    cells = [[row["lever"], mib(row["allocated"]), mib(row["reserved"]), mib(row["in_phase"]), row["then"], row["cost"]]
             for row in rows]  # fmt: skip
    headings = ("lever, traced by itself", "saves MiB", "of what is reserved", f"in the phase {phase}", "peak then in",
                "costs")  # fmt: skip
    text = table(headings, cells, words=("peak then in", "costs"))
    if moved := [row["lever"] for row in rows if row["then"] != phase]:
        said = (f"The peak is in the phase {phase}. With one of these it is in another, so that it falls by less than "
                f"that phase does: {'; '.join(moved)}.")  # fmt: skip
        text += f"\n\n{fill(said, WIDTH)}"
    return text


def document(
    scenario: Scenario, parts: list[Component], account: Account, gpu: GPU | None, results: Results
) -> str:
    """The whole report, in Markdown; its first line is the answer."""
    rows = on_gpus(results)
    text = [answer(scenario, rows), title(scenario, gpu), exact(scenario, parts), f"From here on {PREDICTED}.",
            by_component(account, account.peak().clock), peak_in_words(account),
            beside(account, gpu, scenario.processes), gpus_table(rows)]  # fmt: skip
    if gpu:
        text.append(one_gpu(rows[0]))
    if rows := advice(scenario, account, results, gpu):
        text.append(advice_table(rows, account.peak().phase))
    return "\n\n".join(text)


# ---- for programs


def as_dictionary(
    scenario: Scenario, parts: list[Component], account: Account, gpu: GPU | None, results: Results
) -> dict:
    """The content of all tables, in bytes."""
    peak = account.peak()
    return {
        "measured": False,
        "answer": answer(scenario, on_gpus(results)),
        "stage": scenario.stage,
        "users": scenario.users,
        "processes": scenario.processes,
        "attention": scenario.attention,
        "config": asdict(scenario.config),
        "components": {part.name: {c: getattr(part, c) for c in COMPONENT_COLUMNS} for part in parts},
        "parameters_without_effect": without_effect(scenario.config, parts),
        "peak": asdict(peak),
        "peak_of_phase": {name: account.peak(name).bytes for name in account.phases()},
        "at_peak": account.table(peak.clock),
        "modules_at_peak": account.modules(peak.clock, depth=99),
        "end_of_forward": [int(account.live()[clock]) for clock in account.forward_ends],
        "beside": [asdict(part) for part in overheads(account, gpu, scenario.processes)],
        "cards": on_gpus(results),
        "advice": advice(scenario, account, results, gpu),
    }
