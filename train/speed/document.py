"""What was measured, in Markdown. Only ratios can be compared between machines, and only those of one run."""

from collections.abc import Callable, Iterable

from train.base.markdown import table
from train.base.units import mib, percent
from train.speed.clock import BUSY, Figure, Rounds, figure, ratio
from train.speed.parts import FUSED, OURS, PHASES, PLAIN, THEIRS

UNSURE = 0.1  # of a ratio's interval, over its median
STAGES = {"ldm": "UNet", "vae": "VAE"}

Seconds = Callable[[dict[str, float]], float]
"""Of one round, out of its phases."""


def whole(phases: dict[str, float]) -> float:
    return sum(seconds for phase, seconds in phases.items() if phase != FUSED)


def with_fused(phases: dict[str, float]) -> float:
    """With AdamW's fused form, where the side has another by default."""
    return whole(phases) - (phases["optimizer"] - phases[FUSED] if FUSED in phases else 0)


def document(found: dict) -> str:
    sections = [
        "# Time and memory, beside `diffusers`",
        f"`{found['command']}`",
        "\n".join(f"- {name}: {value}" for name, value in found["machine"].items()),
        trust(found),
        "Times are medians of rounds in which the sides take turns; a ratio is the median of the rounds' own, with the "
        "lowest and the highest. Ratios can be compared between machines; times cannot.",
        *(section for stage in STAGES for section in training(found, stage)),
        "## The whole step otherwise",
        otherwise(found),
        "## Without gradients",
        used(found),
        "## Kept for the backward pass",
        kept(found),
        *(["## On the card", peaks(found)] if found["peaks"] else []),
        "## What the machine can do",
        ceiling(found),
        "## A run of `train.ldm`",
        run(found),
    ]
    return "\n\n".join(sections) + "\n"


def trust(found: dict) -> str:
    """Whether the machine had time for this."""
    waited, step = found["waited"], found["steps"]["ldm"]["rounds"]
    totals = [[whole(one) for one in rounds] for rounds in step.values()]
    spread = max((f.high - f.low) / f.median for f in (ratio(totals[0], other) for other in totals[1:]))
    said = "not known" if waited is None else percent(waited)
    known = f"Threads waited for a core in {said} of the time, and a step's ratio moved by {percent(spread)}"
    if (waited or 0) > BUSY or spread > UNSURE:
        return f"**The machine was too busy to tell small differences.** {known}."
    return f"{known}: nothing much else was running."


def training(found: dict, stage: str) -> list[str]:
    one = found["steps"][stage]
    title = f"## Training step of the {STAGES[stage]}: {one['images']} images, {PRECISION[one['precision']]}"
    return [title, by_phase(one["rounds"])]


PRECISION = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


def by_phase(sides: dict[str, Rounds]) -> str:
    """A step's phases, and all of it."""
    rows = [row(sides, phase, lambda one, phase=phase: one[phase]) for phase in PHASES]
    rows.append(row(sides, "whole step", whole))
    if THEIRS in sides:
        rows.append(row(sides, f"the same, {THEIRS} with fused AdamW", with_fused))
    return table(headings(sides, "milliseconds"), rows)


def otherwise(found: dict) -> str:
    """Whole steps of other batches, with an adversary, compiled; and why what is not here is not."""
    rows, missing = [], []
    sides = found["steps"]["ldm"]["rounds"]
    for stage, by_name in found["otherwise"].items():
        for name, one in by_name.items():
            what = f"{STAGES[stage]}, {name}"
            if "cannot" in one:
                missing.append(f"- {what}: not measured. {one['cannot']}")
                continue
            rows.append(row(one["rounds"], what, whole, sides))
            if THEIRS in one["rounds"]:
                rows.append(row(one["rounds"], f"the same, {THEIRS} with fused AdamW", with_fused, sides))
    shown = f"{table(headings(sides, 'milliseconds'), rows)}\n\nMedians of half as many rounds."
    return "\n\n".join([shown, *(["\n".join(missing)] if missing else [])])


def used(found: dict) -> str:
    guided = found["guided"]
    parts = {f"UNet, one evaluation with guidance, {guided['images']} images": guided["rounds"]}
    parts |= {f"VAE, {what}, {found['steps']['vae']['images']} images": rounds for what, rounds in found["vae"].items()}
    rows = [row(sides, what, whole) for what, sides in parts.items()]
    return table(headings(guided["rounds"], "milliseconds, fp32"), rows)


def headings(sides: dict, first: str) -> list[str]:
    """The columns: sides, then ours over each of the others."""
    return [first, *sides, *(f"{OURS} / {name}" for name in sides if name != OURS)]


def row(sides: dict[str, Rounds], name: str, seconds: Seconds, columns: Iterable[str] = ()) -> list[str]:
    """`columns`: the sides of the table, where a row may lack one."""
    by_side = {side: [seconds(one) for one in sides.get(side, [])] for side in columns or sides}
    times = [f"{1e3 * figure(values).median:,.1f}" if values else "" for values in by_side.values()]
    others = [values for side, values in by_side.items() if side != OURS]
    return [name, *times, *(between(ratio(by_side[OURS], values)) if values else "" for values in others)]


def between(f: Figure) -> str:
    return f"{f.median:.3f} ({f.low:.3f} to {f.high:.3f})"


def kept(found: dict) -> str:
    first = next(iter(found["kept"].values()))
    sides = [name for name in (OURS, PLAIN, THEIRS) if name in first]
    rows = []
    for stage, counts in found["kept"].items():
        ratios = [f"{counts[OURS] / counts[side]:.3f}" for side in sides if side != OURS]
        rows.append([STAGES[stage], *(mib(counts[side]) for side in sides), mib(counts["predicted"]), *ratios])
    shown = headings(dict.fromkeys(sides), "MiB per sample")
    shown.insert(1 + len(sides), "predicted for ours")
    return f"{table(shown, rows)}\n\nCounted from the tensors that are alive; predicted by `train.memcheck`'s account."


def peaks(found: dict) -> str:
    rows = [[STAGES[stage], *map(mib, counts.values())] for stage, counts in found["peaks"].items()]
    names = list(next(iter(found["peaks"].values())))
    return table(["MiB beyond what is there between steps, at the peak of forward and backward pass", *names], rows)


def ceiling(found: dict) -> str:
    limits = found["ceiling"]
    most = max(limits["matrix product"], limits["convolution"])
    rows = [[name, f"{limits[name] / 1e9:,.0f} GFLOP/s"] for name in ("matrix product", "convolution")]
    rows.append(["copy", f"{limits['copy'] / 1e9:,.1f} GB/s"])
    for stage, one in found["steps"].items():
        for side, rounds in one["rounds"].items():
            seconds = figure([each["forward"] + each["backward"] for each in rounds]).median
            rate = one["flops"] / seconds
            share = f"{rate / 1e9:,.0f} GFLOP/s, {percent(rate / most)}"
            rows.append([f"{STAGES[stage]}, forward and backward, {side}", share])
    return table(["", "rate, and its share of the higher of the first two"], rows)


def run(found: dict) -> str:
    one, old = found["run"], found["old recipe"]
    rows = [
        ["seconds from the start of the command to the end of its first step", f"{one['seconds_to_first_step']:.1f}"],
        ["images per second of its steps, with all that a run does in them", f"{one['images_per_second']:.2f}"],
    ]
    if old:
        rate = figure([old["images"] / seconds["all"] for seconds in old["rounds"]]).median
        rows.append([f"the old recipe's: {THEIRS}, batch 1 x {old['images']}, VAE in the loop", f"{rate:.2f}"])
        rows.append(["times as fast", f"{one['images_per_second'] / rate:.2f}"])
    return table(["", "measured"], rows)
