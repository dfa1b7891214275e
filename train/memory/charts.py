"""The account in pictures: live memory through one step, and what each module holds at the peak."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.memory.account import CATEGORIES, Account
from train.pictures import COLOURS, INK, PAPER, RULE, save_picture

MiB = 2**20
SIZE = (960, 460)
PALETTE = (*COLOURS, (140, 86, 75), (23, 190, 207), (127, 127, 127))


def draw_charts(account: Account, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(timeline(account, "category"), folder / "memory_timeline.png")
    save_picture(timeline(account, "component"), folder / "memory_components.png")
    save_picture(bars(account), folder / "memory_modules.png")


def timeline(account: Account, by: str) -> Image.Image:
    """Bytes alive at each birth and death, stacked by "category" or "component", with phases marked."""
    labels = np.array(getattr(account, by))
    names = [c for c in CATEGORIES if c in labels] if by == "category" else list(dict.fromkeys(labels))
    start = next(s.born for s in account.storages if s.phase in ("inputs", "sampling"))
    layers = np.stack([account.live(of=labels == name)[start:] for name in names])
    total = layers.sum(0)
    highest, length = int(total.max()), len(total)
    font = ImageFont.load_default(12)
    canvas = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(canvas)
    left, right, top, bottom = 70, SIZE[0] - 16, 30, SIZE[1] - 60
    edges = np.linspace(0, length, right - left + 1).astype(int)
    for x, (first, last) in enumerate(pairwise(edges), start=left):
        moment = first + int(total[first : max(last, first + 1)].argmax())  # the highest one in this column
        heights = layers[:, moment].cumsum() / highest * (bottom - top)
        for i in reversed(range(len(names))):
            draw.line([(x, bottom), (x, bottom - heights[i])], PALETTE[i % len(PALETTE)])
    for tick in np.linspace(0, highest, 6):
        y = bottom - tick / highest * (bottom - top)
        draw.line([(left - 4, y), (left, y)], INK)
        draw.text((left - 6, y), f"{tick / MiB:,.0f}", INK, font, anchor="rm")
    changes = [s for before, s in pairwise(account.storages) if s.born >= start and s.phase != before.phase]
    for i, storage in enumerate(changes):
        x = left + (storage.born - start) / length * (right - left)
        draw.line([(x, top), (x, bottom)], RULE)
        draw.text((x + 2, bottom + 4 + 13 * (i % 2)), storage.phase, INK, font)
    title = f"MiB alive through one step, by {by}; the peak is {highest / MiB:,.0f} (predicted)"
    draw.text((left, 8), title, INK, font)
    _legend(draw, names, left, SIZE[1] - 24)
    return canvas


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str], left: int, y: int) -> None:
    for i, name in enumerate(names):
        x = left + i * 125
        draw.rectangle([x, y + 2, x + 10, y + 12], PALETTE[i % len(PALETTE)])
        draw.text((x + 14, y), name, INK, ImageFont.load_default(12))


def bars(account: Account, count: int = 30) -> Image.Image:
    """The modules that hold most at the peak, down to the block, stacked by category."""
    modules = account.modules(account.peak().clock)
    largest = sorted(modules.items(), key=lambda item: -sum(item[1].values()))[:count]
    font = ImageFont.load_default(12)
    left, line = 240, 18
    canvas = Image.new("RGB", (SIZE[0], 60 + line * len(largest)), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 8), "MiB alive at the peak, by module (predicted)", INK, font)
    widest = max(sum(row.values()) for _, row in largest)
    for i, (name, row) in enumerate(largest):
        y, x = 30 + line * i, float(left)
        draw.text((left - 6, y + 7), name, INK, font, anchor="rm")
        for j, category in enumerate(CATEGORIES):
            width = row[category] / widest * (SIZE[0] - left - 70)
            if width:
                draw.rectangle([x, y, x + width, y + 13], PALETTE[j])
            x += width
        draw.text((x + 5, y + 7), f"{sum(row.values()) / MiB:,.1f}", INK, font, anchor="lm")
    _legend(draw, CATEGORIES, 10, canvas.height - 22)
    return canvas
