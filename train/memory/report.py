"""The account in words: Markdown tables for a person, one dictionary for a program."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import fill

from train.base.errors import UserError
from train.memory.account import CATEGORIES, HEADINGS, Account
from train.memory.allocator import served
from train.memory.components import Component, without_effect
from train.memory.fit import (  # fmt: skip
    account_of,
    alone,
    cheapest_that_fits,
    fits_traced,
    largest_batch,
    left,
    levers,
    on_card,
    room,
    runs,
)  # fmt: skip
from train.memory.gpus import CARDS, CardType
from train.memory.overhead import lines
from train.memory.scenario import Setting
from train.memory.workers import on_all_cores

MiB, GiB = 2**20, 2**30
WIDTH = 120  # of a console
MEDIUM_UNET, VAE = 139_680_132, 42_928_871  # parameters
PREDICTED = "predicted: no GPU has confirmed these figures"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = ()) -> str:
    """A Markdown table, its columns as wide as they need to be: numbers to the right, `words` and the first left."""
    left = [i == 0 or heading in words for i, heading in enumerate(headings)]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = ["-" * width if first else "-" * (width - 1) + ":" for first, width in zip(left, widths, strict=True)]
    lines = []
    for row in (headings, rule, *rows):
        columns = zip(row, left, widths, strict=True)
        lines.append(" | ".join(cell.ljust(width) if first else cell.rjust(width) for cell, first, width in columns))
    return "\n".join(f"| {line} |" for line in lines)


def mib(count: int) -> str:
    return f"{count / MiB:,.1f}" if count else "-"


def gib(count: int) -> str:
    return f"{count / GiB:.2f}"


def title(setting: Setting, card: CardType | None) -> str:
    """What is asked, in one line."""
    training, config = setting.training, setting.config
    words = [f"stage {setting.stage}", f"batch {training.batch_size}"]
    if setting.stage != "sample":
        form = "fused" if training.optimizer.fused else "foreach"
        words += [f"x {training.gradient_accumulation_steps} accumulated", f"precision {training.mixed_precision}",
                  f"checkpointing {'on' if training.gradient_checkpointing else 'off'}", f"AdamW {form}"]  # fmt: skip
        words += [f"one of {setting.processes} cards"] if setting.processes > 1 else []
    if setting.stage == "ldm":
        words.append("cached latents" if config.latents.cache_latents else "latents in the loop")
    if setting.stage == "sample":
        words += ["precision no", f"sampler {config.sampling.sampler}", f"guidance {config.sampling.guidance:g}"]
    where = f"on {card.name}" if card else "on any card"
    return f"## Memory {where}: {', '.join(words)}"


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
    text = [table(headings, rows), f"\n{sum(sums):,} bytes = {gib(sum(sums))} GiB: exact, before any activation."]
    if setting.ranks > 1:
        text.append(f"The optimizer's state is that of all {setting.ranks} cards, which divide it.")
    if idle := without_effect(setting.config, parts):
        text.append(
            f"One context token leaves {idle:,} parameters of the UNet without effect"
            + ("." if setting.stage == "sample" else ": no gradient, no optimizer state, no half copy.")
        )
    return "\n".join(text)


def old_estimates(
    setting: Setting, parts: list[Component], answers: "Answers", card: CardType | None
) -> list[tuple[str, str, int]]:
    """What users were told about a step of medium (at batch 1), beside what is the case; of other runs nothing."""
    unets = [part for part in parts if part.parameters == MEDIUM_UNET]
    if not unets or setting.stage != "ldm":
        return []
    seen = answers.runs[on_card(alone(setting), card)]
    return [
        *(("parameters of the VAE", "~50M", part.parameters) for part in parts if part.parameters == VAE),
        ("parameters of the UNet", "~200M", unets[0].parameters),
        ("its weights", "~5 GB", unets[0].weights),
        ("gradients", "~5 GB", seen.categories["gradients"]),
        ("optimizer state", "~5 GB", seen.categories["optimizer state"]),
        ("activations", "~1 GB", seen.categories["activations"]),
        ("all at the peak", "16 GB", seen.peak),
    ]


def old_estimates_table(rows: list[tuple[str, str, int]]) -> str:
    cells = [(what, said, f"{count:,}" if what.startswith("parameters") else f"{gib(count)} GiB")
             for what, said, count in rows]  # fmt: skip
    return table(("", "was said", "is"), cells)


# ---- what the trace says


def by_component(account: Account, clock: int) -> str:
    sums = account.table(clock)
    rows = [[name, *(mib(row[c]) for c in CATEGORIES), mib(sum(row.values()))] for name, row in sums.items()]
    totals = [sum(row[c] for row in sums.values()) for c in CATEGORIES]
    rows.append(["total", *map(mib, totals), mib(sum(totals))])
    return table(("MiB at the peak", *HEADINGS.values(), "total"), rows)


def peak_in_words(account: Account) -> str:
    peak = account.peak()
    where = f"operator {peak.operator}" + (f" in {peak.module}" if peak.module else "")
    phases = ", ".join(f"{name} {gib(account.peak(name).bytes)}" for name in account.phases())
    text = [fill(f"Peak: {peak.bytes:,} bytes = {gib(peak.bytes)} GiB, in the phase {peak.phase}, {where}.", WIDTH),
            fill(f"The peak of each phase, GiB: {phases}.", WIDTH),
            "The largest tensors alive then, beside weights and what is made of them:\n"]  # fmt: skip
    for size, storage in account.largest(peak.clock, 5):
        what = f"{HEADINGS[storage.category or 'temporaries']}, {storage.phase}, {storage.operator} {storage.module}"
        text.append(f"- {mib(size)} MiB: {what}".rstrip())
    return "\n".join(text)


def beside(account: Account, card: CardType | None, processes: int) -> str:
    """What no tensor of the program is, and no row of the table holds."""
    found = lines(account, card, processes)
    rows = [(line.name, "?" if line.bytes is None else mib(line.bytes)) for line in found]
    sources = [fill(f"- {line.name}: {line.source}", WIDTH, subsequent_indent="  ") for line in found]
    beside = table(("beside the tensors, never added to them", "MiB"), rows)
    return "\n".join([beside, "\nWhere that is from:\n", *sources])


VARIANTS = {"largest_batch": "without checkpointing", "largest_batch_checkpointed": "with checkpointing"}


def variants(setting: Setting) -> dict[str, Setting]:
    """The runs whose largest batch is of interest."""
    if setting.stage == "sample":
        return {"largest_batch": setting}
    plain, again = (setting.with_training(gradient_checkpointing=each) for each in (False, True))
    return {"largest_batch": plain, "largest_batch_checkpointed": again}


@dataclass(frozen=True)
class Seen:
    """Of another run, in bytes."""

    peak: int
    """Of what its tensors ask for."""
    allocated: int
    reserved: int
    categories: dict[str, int]
    """The most of each that is alive at once."""


@dataclass(frozen=True)
class Answers:
    """What takes traces of its own."""

    cards: dict[CardType, dict]
    """Does it fit, what is left, the largest micro-batch, and what would make it fit."""
    runs: dict[Setting, Seen]
    """With each lever pulled alone, and at batch 1."""


def ask(setting: Setting, cards: Sequence[CardType], card: CardType | None) -> Answers:
    """All of it in one round, so that no core waits; what needs the same trace is one question.

    Levers are pulled on `card`, and its largest batches are traced themselves.
    """
    alike: dict[Setting, list[CardType]] = {}  # by their kernels
    for each in cards:
        alike.setdefault(on_card(setting, each), []).append(each)
    pulled = [*(lever.pull(setting) for lever in levers(setting)), alone(setting)]
    others = dict.fromkeys(on_card(other, card) for other in pulled)
    grown = {
        variant: (ours, name, alike[ours])
        for ours in sorted(alike, key=lambda ours: -len(alike[ours])) for name, variant in variants(ours).items()
    }  # fmt: skip
    questions = [partial(_of_cards, *of, variant, variant in others, card) for variant, of in grown.items()]
    questions += [partial(_of_run, other) for other in others if other not in grown]
    found = Answers({}, {})
    for answer in on_all_cores(questions):
        for each, row in answer.cards.items():
            found.cards.setdefault(each, {}).update(row)
        found.runs.update(answer.runs)
    return found


def _of_cards(
    ours: Setting, name: str, cards: list[CardType], variant: Setting, seen: bool, only: CardType | None
) -> Answers:
    """Of cards that have the same kernels: the largest batch of a variant; of the run itself, how it fits besides."""
    rows: dict[CardType, dict] = {card: {} for card in cards}
    for card in cards:
        if runs(variant, card):
            batch = rows[card][name] = largest_batch(variant, card)
            if batch and card == only:
                rows[card][f"{name}_traced"] = [fits_traced(variant, each, card) for each in (batch, batch + 1)]
            if variant == ours:
                account = account_of(ours)
                free = left(account, room(card, account))
                rows[card] |= {"fits": free >= 0, "left": free}
        if variant == ours and not rows[card].get("fits"):
            rows[card]["fits_with"] = cheapest_that_fits(ours, card)
    return Answers(rows, _of_run(variant).runs if seen else {})


def _of_run(setting: Setting) -> Answers:
    account = account_of(setting)
    given = served(account)
    categories = {name: account.of_category(name) for name in CATEGORIES}
    return Answers({}, {setting: Seen(account.peak().bytes, given.peak_allocated, given.peak_reserved, categories)})


def on_cards(cards: Sequence[CardType], answers: Answers) -> list[dict]:
    """What is known of each card, and what was found."""
    return [
        {"card": card.name, "bytes": card.bytes, "bytes_from": card.source, "capability": card.capability,
         "attention": card.attention, "bf16": card.bf16, "wheel": card.wheel, "runs": "fits" in answers.cards[card]}
        | answers.cards[card]
        for card in cards
    ]  # fmt: skip


def cards_table(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        says = "no bf16" if not row["runs"] else "yes" if row["fits"] else "no"
        batches = [str(row.get(name) or "-") for name in ("largest_batch", "largest_batch_checkpointed")]
        cells.append([row["card"], gib(row["bytes"]), says, gib(row["left"]) if row["runs"] else "-", *batches,
                      "{}.{}".format(*row["capability"]), row["attention"], "yes" if row["bf16"] else "no",
                      row["wheel"]])  # fmt: skip
    headings = ("card", "GiB", "fits", "left", "largest batch", "with checkpointing", "capability", "attention",
                "bf16", "wheel")  # fmt: skip
    text = [table(headings, cells)]
    for row in rows:
        if not row.get("fits"):
            names = row["fits_with"]
            text.append(f"\n{row['card']}: " + (f"fits with {', '.join(names)}." if names else "nothing makes it fit."))
    return "\n".join(text)


def one_card(row: dict) -> str:
    """Where the card's size is from; what came of the largest batches and the next ones, each traced itself."""
    lines = [fill(f"The card's bytes: {row['bytes_from']}.", WIDTH)]
    for name, words in VARIANTS.items():
        if traced := row.get(f"{name}_traced"):
            found = [f"batch {row[name] + i} {'fits' if fits else 'does not fit'}" for i, fits in enumerate(traced)]
            lines.append(f"Traced themselves, {words}: {', '.join(found)}.")
    return "\n".join(lines)


def advice(setting: Setting, account: Account, answers: Answers, card: CardType | None) -> list[dict]:
    """What each lever that saves anything would save, pulled alone and traced; the largest saving first."""
    now, rows = served(account), []
    for lever in levers(setting):
        then = answers.runs[on_card(lever.pull(setting), card)]
        rows.append({"lever": lever.name, "cost": lever.cost, "allocated": now.peak_allocated - then.allocated,
                     "reserved": now.peak_reserved - then.reserved})  # fmt: skip
    return sorted((row for row in rows if row["allocated"] > 0), key=lambda row: -row["allocated"])


def advice_table(rows: list[dict]) -> str:
    cells = [[row["lever"], mib(row["allocated"]), mib(row["reserved"]), row["cost"]] for row in rows]
    return table(("lever, traced by itself", "saves MiB", "of what is reserved", "costs"), cells, words=("costs",))


# ---- for programs


def as_dictionary(setting: Setting, parts: list[Component], account: Account, card: CardType | None) -> dict:
    """All that the tables say, in bytes."""
    peak, cards = account.peak(), [card] if card else CARDS
    answers = ask(setting, cards, card)
    return {
        "measured": False,
        "stage": setting.stage,
        "users": setting.users,
        "processes": setting.processes,
        "attention": setting.attention,
        "config": asdict(setting.config),
        "components": {
            part.name: {"parameters": part.parameters, **{c: getattr(part, c) for c in EXACT}} for part in parts
        },
        "parameters_without_effect": without_effect(setting.config, parts),
        "peak": asdict(peak),
        "peak_of_phase": {name: account.peak(name).bytes for name in account.phases()},
        "at_peak": account.table(peak.clock),
        "modules_at_peak": account.modules(peak.clock, depth=99),
        "end_of_forward": [int(account.live()[clock]) for clock in account.forward_ends],
        "beside": [asdict(line) for line in lines(account, card, setting.processes)],
        "old_estimates": old_estimates(setting, parts, answers, card),
        "cards": on_cards(cards, answers),
        "advice": advice(setting, account, answers, card),
    }


def write_modules(account: Account, path: Path) -> None:
    """A line for each module that has something alive at the peak: bytes by category.

    UserError where the file is there and is no such table.
    """
    columns = ("module", *CATEGORIES, "total")
    if path.is_file() and not path.read_bytes().startswith(",".join(columns).encode()):
        raise UserError(f"{path}: is there already, and holds something else; give another name")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, row in sorted(account.modules(account.peak().clock, depth=99).items()):
            writer.writerow((name, *row.values(), sum(row.values())))
