"""The account in words: tables for a person, one dictionary for a program."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from train.memory.account import CATEGORIES, Account
from train.memory.allocator import Replay
from train.memory.cards import CARDS, CardType
from train.memory.components import Component, without_effect
from train.memory.outside import lines
from train.memory.plan import Growth, Lever, account_of, fits, room
from train.memory.setting import Setting

MiB, GiB = 2**20, 2**30
MEDIUM_UNET = 139_680_132  # parameters
PREDICTED = "predicted: no GPU has confirmed these figures"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, ["-" * width for width in widths], *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    return "\n".join(lines)


def mib(count: int) -> str:
    return f"{count / MiB:,.1f}" if count else "-"


def gib(count: int) -> str:
    return f"{count / GiB:.2f}"


# ---- what follows from shapes


EXACT = ("weights", "gradients", "optimizer_state", "ema", "half_copies")


def exact(setting: Setting, parts: list[Component]) -> str:
    """Exact, the same on every card, before any activation."""
    rows = [
        [part.name, f"{part.parameters:,}", *(mib(getattr(part, column)) for column in EXACT)] for part in parts
    ]
    sums = [sum(getattr(part, column) for part in parts) for column in EXACT]
    rows.append(["total", f"{sum(part.parameters for part in parts):,}", *map(mib, sums)])
    headings = ("MiB", "parameters", "weights", "gradients", "optimizer state", "EMA", "half copies")
    text = [table(headings, rows), f"{sum(sums):,} bytes = {gib(sum(sums))} GiB: exact, before any activation"]
    if idle := without_effect(setting.config, parts):
        text.append(
            f"One context token leaves {idle:,} parameters of the UNet without effect"
            + ("." if setting.stage == "sample" else ": no gradient, no optimizer state, no half copy.")
        )
    return "\n".join(text)


def old_estimate(setting: Setting, parts: list[Component], account: Account) -> str:
    """What users were told about this model at batch 1, beside what is the case."""
    unets = [part for part in parts if part.parameters == MEDIUM_UNET]
    if not unets or setting.stage != "ldm":
        return ""
    clock = account.peak().clock
    rows = [
        ("parameters of the UNet", "~200M", f"{unets[0].parameters:,}"),
        ("its weights", "~5 GB", f"{gib(unets[0].weights)} GiB"),
        ("gradients", "~5 GB", f"{gib(account.of_category('gradients'))} GiB"),
        ("optimizer state", "~5 GB", f"{gib(account.of_category('optimizer state'))} GiB"),
        ("activations", "~1 GB", f"{gib(account.of_category('activations'))} GiB"),
        ("all at the peak", "16 GB", f"{gib(int(account.live()[clock]))} GiB"),
    ]
    return "\n".join([
        "An earlier estimate for this model at batch 1, which was wrong, beside the account of the same batch:",
        table(("", "was said", "is"), rows),
    ])  # fmt: skip


# ---- what the trace says


def by_component(account: Account, clock: int) -> str:
    sums = account.table(clock)
    rows = [[name, *(mib(row[c]) for c in CATEGORIES), mib(sum(row.values()))] for name, row in sums.items()]
    totals = [sum(row[c] for row in sums.values()) for c in CATEGORIES]
    rows.append(["total", *map(mib, totals), mib(sum(totals))])
    return table(("MiB at the peak", *CATEGORIES, "total"), rows)


def peak_in_words(account: Account) -> str:
    peak = account.peak()
    where = f"operator {peak.operator}" + (f" in {peak.module}" if peak.module else "")
    text = [f"Peak: {peak.bytes:,} bytes = {gib(peak.bytes)} GiB, in the phase {peak.phase}, {where}"]
    phases = ", ".join(f"{name} {gib(account.peak(name).bytes)}" for name in account.phases())
    text.append(f"The peak of each phase, GiB: {phases}")
    text.append("The largest tensors alive then, beside weights and what is made of them:")
    for size, storage in account.largest(peak.clock, 5):
        kind = storage.category or "temporary"
        text.append(f"  {mib(size):>8} MiB  {kind}, {storage.phase}, {storage.operator} {storage.module}".rstrip())
    return "\n".join(text)


def outside(account: Account, card: CardType | None) -> str:
    rows = [(line.name, mib(line.bytes), line.source) for line in lines(account, card)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(
        ["On top of it, outside the models (MiB):"]
        + [f"  {name:<{widths[0]}}  {size:>{widths[1]}}  {source}" for name, size, source in rows]
    )


def cards_table(setting: Setting, account: Account, plain: Growth, checkpointed: Growth | None,
                cards: Sequence[CardType]) -> str:  # fmt: skip
    """For each card: does it fit, what is left, and the largest micro-batch."""
    need = Replay(account).serve().peak_reserved
    tolerance = 0.0 if len(cards) == 1 else 0.02
    growths = [growth for growth in (plain, checkpointed) if growth]
    rows = []
    for card in cards:
        bf16 = setting.stage != "sample" and setting.training.mixed_precision == "bf16"
        says = "no bf16" if bf16 and not card.bf16 else "yes" if fits(account, card) else "no"
        largest = [str(growth.largest(card, tolerance) or "-") for growth in growths]
        rows.append([card.name, f"{card.memory:.2f}", says, gib(room(card) - need), *largest,
                     "{}.{}".format(*card.capability), card.attention, "yes" if card.bf16 else "no",
                     card.wheel])  # fmt: skip
    batches = ("largest batch", "with checkpointing")[: len(growths)]
    headings = ("card", "GiB", "fits", "left", *batches, "capability", "attention", "bf16", "wheel")
    return table(headings, rows)


def advice(setting: Setting, account: Account, levers: list[Lever]) -> str:
    """What each lever would save of the peak that the allocator reserves, the largest saving first."""
    now = Replay(account).serve()
    saved = []
    for lever in levers:
        then = Replay(account_of(lever.setting)).serve()
        saved.append((now.peak_allocated - then.peak_allocated, now.peak_reserved - then.peak_reserved, lever))
    saved.sort(key=lambda entry: -entry[0])
    rows = [[lever.name, mib(peak), mib(reserved), lever.cost] for peak, reserved, lever in saved]
    return table(("lever, traced by itself", "saves MiB", "of reserved", "costs"), rows)


# ---- for programs


def as_dictionary(setting: Setting, parts: list[Component], account: Account, card: CardType | None) -> dict:
    peak = account.peak()
    return {
        "measured": False,
        "stage": setting.stage,
        "config": asdict(setting.config),
        "components": {
            part.name: {"parameters": part.parameters, **{c: getattr(part, c) for c in EXACT}} for part in parts
        },
        "parameters_without_effect": without_effect(setting.config, parts),
        "peak": asdict(peak),
        "peak_of_phase": {name: account.peak(name).bytes for name in account.phases()},
        "at_peak": account.table(peak.clock),
        "end_of_forward": [int(account.live()[clock]) for clock in account.forward_ends],
        "outside": [asdict(line) for line in lines(account, card)],
    }


def write_modules(account: Account, path: Path) -> None:
    """A line for each module that has something alive at the peak: bytes by category."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("module", *CATEGORIES, "total"))
        for name, row in sorted(account.modules(account.peak().clock, depth=99).items()):
            writer.writerow((name, *row.values(), sum(row.values())))


def card_named(name: str) -> CardType | None:
    wanted = name.lower().replace(" ", "").replace("-", "")
    found = [card for card in CARDS if card.name.lower().replace("-", "").startswith(wanted)]
    return found[0] if found else None
