"""Pictures of the account: live memory through a run's first steps, and the memory of each module at the peak."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from train.base.units import MiB
from train.data.images import save_picture
from train.memory.account import CATEGORIES, HEADINGS, Account
from train.runs.pictures import COLOURS, INK, PAPER, RULE, text_font

SIZE = (960, 460)
PALETTE = (*COLOURS, (140, 86, 75), (23, 190, 207), (127, 127, 127))


def charts(account: Account) -> dict[str, Image.Image]:
    """The pictures, by the names of their files."""
    return {
        "memory_timeline": timeline(account, "category"), "memory_components": timeline(account, "component"),
        "memory_modules": bars(account),
    }  # fmt: skip


def save_charts(account: Account, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in charts(account).items():
        save_picture(picture, folder / f"{name}.png")


def timeline(account: Account, by: str) -> Image.Image:
    """Chart of the bytes alive through the first steps, stacked by "category" or "component", with their phases."""
    labels = np.array(getattr(account, by))
    names = [c for c in CATEGORIES if c in labels] if by == "category" else list(account.table(0))
    start = next(s.born for s in account.storages if s.phase in ("inputs", "sampling"))
    colours = [PALETTE[(CATEGORIES if by == "category" else names).index(name) % len(PALETTE)] for name in names]
    layers = np.stack([account.live(mask=labels == name)[start:] for name in names])
    total = layers.sum(0)
    highest, length, font = int(total.max()), len(total), text_font()
    canvas = Image.new("RGB", SIZE, PAPER)
    brush = ImageDraw.Draw(canvas)
    left, right, top, bottom = 84, SIZE[0] - 16, 34, SIZE[1] - 74
    scale = (bottom - top) / highest
    edges = np.linspace(0, length, right - left + 1).astype(int)
    for x, (first, last) in enumerate(pairwise(edges), start=left):
        moment = first + int(total[first : max(last, first + 1)].argmax())  # of the highest total in this column
        heights = layers[:, moment].cumsum() * scale
        for i in reversed(range(len(names))):
            brush.line([(x, bottom), (x, bottom - heights[i])], colours[i])
    for tick in range(0, highest + 1, _round_step(highest)):
        y = bottom - tick * scale
        brush.line([(left - 4, y), (left, y)], INK)
        brush.text((left - 8, y), f"{tick / MiB:,.0f} MiB", INK, font, anchor="rm")
    changes = [s for before, s in pairwise(account.storages) if s.born >= start and s.phase != before.phase]
    borders = [left + (s.born - start) / length * (right - left) for s in changes] + [right]
    for storage, (x, end) in zip(changes, pairwise(borders), strict=True):
        brush.line([(x, top), (x, bottom + 4)], RULE)
        if end - x > font.getlength(storage.phase):  # shorter phases have no room for their name
            brush.text(((x + end) / 2, bottom + 6), storage.phase, INK, font, anchor="mt")
    brush.text(((left + right) / 2, bottom + 22), "time, in births and deaths of tensors", INK, font, anchor="mt")
    title = f"Memory alive through a run's first steps, by {by}; at most {highest / MiB:,.0f} MiB (predicted)"
    brush.text((left, 10), title, INK, font)
    _legend(brush, dict(zip(names, colours, strict=True)), left, SIZE[1] - 24)
    return canvas


def _round_step(highest: int) -> int:
    """Tick distance for about five ticks: 1, 2 or 5 times a power of ten MiB, and at least 1 MiB."""
    wanted = max(highest / 5 / MiB, 1)
    power = 10 ** int(np.log10(wanted))
    return int(min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(step - wanted))) * MiB


def _legend(brush: ImageDraw.ImageDraw, colours: dict[str, tuple[int, int, int]], left: int, y: int) -> None:
    for i, (name, colour) in enumerate(colours.items()):
        x = left + i * 140
        brush.rectangle([x, y + 2, x + 10, y + 12], colour)
        brush.text((x + 14, y), HEADINGS.get(name, name), INK, text_font())


def bars(account: Account, count: int = 30) -> Image.Image:
    """Bar chart of the modules that hold the most memory at the peak, down to the block, stacked by category."""
    peak, font, left, line = account.peak(), text_font(), 240, 18
    held = sorted(account.modules(peak.clock).items(), key=lambda item: -sum(item[1].values()))
    largest = [(name, row) for name, row in held[:count] if sum(row.values()) > peak.bytes / 1000]
    used = {c: colour for c, colour in zip(CATEGORIES, PALETTE, strict=False) if any(row[c] for _, row in largest)}
    rest = peak.bytes - sum(sum(row.values()) for _, row in largest)
    canvas = Image.new("RGB", (SIZE[0], 74 + line * len(largest)), PAPER)
    brush = ImageDraw.Draw(canvas)
    title = f"MiB alive at the peak, by module (predicted); all others together {rest / MiB:,.1f}"
    brush.text((10, 8), title, INK, font)
    widest = max(sum(row.values()) for _, row in largest)
    for i, (name, row) in enumerate(largest):
        y, x = 32 + line * i, float(left)
        brush.text((left - 6, y + 7), name, INK, font, anchor="rm")
        for category in filter(row.get, used):
            width = row[category] / widest * (SIZE[0] - left - 70)
            brush.rectangle([x, y, x + width, y + 13], used[category])
            x += width
        brush.text((x + 5, y + 7), f"{sum(row.values()) / MiB:,.1f}", INK, font, anchor="lm")
    _legend(brush, used, 10, canvas.height - 24)
    return canvas
