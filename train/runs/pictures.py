"""The pictures that a run saves: grids of images, and curves."""

import math
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, pairwise

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.data.dataset import UserImages, evenly
from train.data.images import to_picture

PICTURE_BATCH = 8  # images that go through the model at once for a picture during training
INK, PAPER, RULE = (30, 30, 30), (255, 255, 255), (222, 222, 222)
FRAME = (150, 150, 150)  # around an image, which may be white or black up to its edge
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14))
# Pixels: between the frames of two images of a grid; height of a line of text; least side of an image; width of the
# widest label.
GAP, LINE, LEAST, LABEL = 2, 16, 64, 160
LARGEST = 1e100  # of a curve: of larger values the difference, of smaller ones the logarithm, may be no number
RULED = 4  # below headings, with the line under those of several columns
LINES = 3  # of a label or a heading, at most
BREAKS = "_-. "  # after which a name is broken first
LEFT, RIGHT, TOP, BOTTOM, INSET = 60, 16, 24, 24, 8  # pixels: around the panels of a chart; around the curves in one


@cache
def text_font() -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 12)  # has more letters than Pillow's own font
    except OSError:
        return ImageFont.load_default(12)


@cache
def has_glyph(letter: str) -> bool:
    """Whether the font has this letter; for one that it lacks, it draws a box."""
    box = text_font().getmask("\U0010ffff")  # not a character
    mask = text_font().getmask(letter)
    return (mask.size, bytes(mask)) != (box.size, bytes(box))


def legible(text: str) -> str:
    """The text in letters that the font has; others lose their accents, or are left out."""
    composed = unicodedata.normalize("NFC", text)
    spelt = "".join(c if has_glyph(c) else unicodedata.normalize("NFKD", c) for c in composed)
    return "".join(c for c in spelt if has_glyph(c)).strip()


def wrapped(text: str, width: float, most: int = LINES) -> list[str]:
    """The text as it can be drawn, in at most so many lines of `width` pixels; too long a one lacks its middle."""
    if not text:
        return []
    text = whole = legible(text) or "?"
    keep = len(whole)
    while len(lines := broken(text, width)) > most and keep > 2:
        keep -= 1
        text = whole[: keep - keep // 2] + "…" + whole[len(whole) - keep // 2 :]
    return lines


def broken(text: str, width: float) -> list[str]:
    """The text in lines of at most `width` pixels, which end after one of `BREAKS` where there is one."""
    lines = []
    while text:
        ends = range(1, len(text) + 1)
        end = max(1, bisect_right(ends, width, key=lambda end: text_font().getlength(text[:end].rstrip())))
        if end < len(text):
            end = max((i for i in range(1, end + 1) if text[i - 1] in BREAKS), default=end)
        lines.append(text[:end].strip())
        text = text[end:].lstrip()
    return lines


def user_labels(names: Sequence[str]) -> list[str]:
    """The names of users as they can be drawn; one that loses letters gets its place in front: "user 3"."""
    drawn = [legible(name) for name in names]
    return [
        label if label == unicodedata.normalize("NFC", name) else f"user {place} {label}".strip()
        for place, (name, label) in enumerate(zip(names, drawn, strict=True), start=1)
    ]


def image_grid(rows: Sequence[tuple[str, Sequence[Tensor | None]]], headings: Sequence[str] = ()) -> Image.Image:
    """Rows of equally sized images (uint8, (C, H, W) each), a label before each, a heading above each column.

    None is an empty cell. `headings` may be fewer than the columns; an empty string, or the same once more, gives its
    room to the heading before it, which is underlined then. Images of less than 64 pixels are enlarged by a whole
    factor.
    """
    _, height, width = next(image.shape for _, images in rows for image in images if image is not None)
    zoom = math.ceil(LEAST / max(height, width))
    height, width = height * zoom, width * zoom
    across, down = width + 2 + GAP, height + 2 + GAP  # from an image to the next; its frame takes one pixel all round
    labels = [wrapped(label, LABEL, min(LINES, max(1, height // LINE))) for label, _ in rows]
    margin = max((math.ceil(text_font().getlength(line)) for lines in labels for line in lines), default=0) + 8
    columns = max(len(images) for _, images in rows)
    begins = [i for i, heading in enumerate(headings) if heading and (i == 0 or heading != headings[i - 1])]
    spans = list(pairwise([*begins, columns]))
    titles = [wrapped(headings[begin], (end - begin) * across - GAP) for begin, end in spans]
    top = LINE * max(map(len, titles)) + RULED if titles else 0
    canvas = Image.new("RGB", (margin + columns * across, top + len(rows) * down), PAPER)
    brush = ImageDraw.Draw(canvas)
    for (begin, end), lines in zip(spans, titles, strict=True):
        paint_lines(brush, margin + begin * across, top - RULED - LINE * len(lines), lines)
        if end - begin > 1:
            brush.line([(margin + begin * across, top - 2), (margin + end * across - GAP - 1, top - 2)], INK)
    for row, (lines, (_, images)) in enumerate(zip(labels, rows, strict=True)):
        y = top + row * down
        paint_lines(brush, 4, y + 1 + (height - LINE * len(lines)) // 2, lines)
        for column, image in enumerate(images):
            if image is not None:
                picture = to_picture(image).resize((width, height), Image.Resampling.NEAREST)
                x = margin + column * across
                brush.rectangle([x, y, x + width + 1, y + height + 1], outline=FRAME)
                canvas.paste(picture, (x + 1, y + 1))
    return canvas


def paint_lines(brush: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str]) -> None:
    for i, line in enumerate(lines):
        brush.text((x, y + 1 + LINE * i), line, INK, text_font())


def real_and_generated(rows: Sequence[tuple[str, Sequence[Tensor], Sequence[Tensor]]]) -> Image.Image:
    """A row for each user (label, real images, generated ones), with all generated images in one block."""
    block = max(1, *(len(real) for _, real, _ in rows))
    lines = [(label, [*real, *[None] * (block - len(real)), *made]) for label, real, made in rows]
    return image_grid(lines, ["real", *[""] * (block - 1), "generated"])


def user_comparison(
    data: UserImages, rows: Tensor, generated: Tensor, asked_for: Tensor, users: int, images: int
) -> Image.Image:
    """For at most `users` users, up to `images` real images from `rows` (N,) and as many generated ones.

    `generated` are uint8 (M, C, H, W), of the users `asked_for` (M,).
    """
    labels, lines = user_labels(data.user_names), []
    for user in evenly(asked_for.unique(), users).tolist():
        real = data.images[evenly(rows[data.user_index[rows] == user], images)]
        lines.append((labels[user], real, generated[asked_for == user][:images]))
    return real_and_generated(lines)


Curves = dict[str, Sequence[tuple[int, float]]]


def line_chart(
    title: str, panels: Sequence[Curves], width: int = 720, height: int = 220, x_name: str = ""
) -> Image.Image:
    """Panels, each `height` pixels high, one below the other, of curves of (x, y) points over one axis of whole x.

    Points whose y is not finite, or beyond all measure, are left out, and so is a panel without any others; a single
    point is a dot.
    """
    panels = [{name: [p for p in curve if abs(p[1]) < LARGEST] for name, curve in panel.items()} for panel in panels]
    panels = [panel for panel in panels if any(panel.values())]
    canvas = Image.new("RGB", (width, TOP + len(panels) * height + BOTTOM), PAPER)
    brush = ImageDraw.Draw(canvas)
    brush.text((LEFT, 6), title, INK, text_font())
    xs = [x for panel in panels for curve in panel.values() for x, _ in curve]
    if not xs:
        return canvas
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)

    def column(x: float) -> float:
        return LEFT + INSET + (x - x0) / (x1 - x0) * (width - RIGHT - LEFT - 2 * INSET)

    colours = cycle(COLOURS)
    for place, panel in enumerate(panels):
        top = TOP + place * height
        coloured = [(name, curve, next(colours)) for name, curve in panel.items()]
        paint_panel(brush, coloured, column, (LEFT, top + LINE + INSET, width - RIGHT, top + height - INSET))
    for tick in linear_ticks(x0, x1, least_step=1):
        if x0 <= tick <= x1:
            brush.text((column(tick), TOP + len(panels) * height), f"{tick:.0f}", INK, text_font(), anchor="mt")
    brush.text((LEFT - 6, TOP + len(panels) * height), x_name, INK, text_font(), anchor="rt")
    return canvas


def paint_panel(brush: ImageDraw.ImageDraw, curves: list, column: Callable, box: tuple[int, int, int, int]) -> None:
    """Draw the curves, (name, points, colour) each, within (left, top, right, bottom), and their names above.

    The y axis is logarithmic where all values are positive and span more than a factor of ten.
    """
    left, top, right, bottom = box
    ys = [y for _, points, _ in curves for _, y in points]
    low, high = min(ys), max(ys)
    if low == high:  # a constant curve, drawn in the middle
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    logarithmic = low > 1 / LARGEST and high > 10 * low
    scale = math.log10 if logarithmic else float
    ticks = decade_ticks(low, high) if logarithmic else linear_ticks(low, high)
    y0, y1 = scale(ticks[0]), scale(ticks[-1])

    def row(y: float) -> float:
        return bottom - (scale(y) - y0) / (y1 - y0) * (bottom - top)

    for tick in ticks:
        brush.line([(left, row(tick)), (right, row(tick))], RULE)
        brush.text((left - 6, row(tick)), f"{tick:.6g}", INK, text_font(), anchor="rm")
    for i, (name, points, colour) in enumerate(curves):
        line = [(column(x), row(y)) for x, y in points]
        width = 2 + 4 * (len(curves) - 1 - i)  # a curve that lies on another one leaves its edges to be seen
        if len(line) > 1:
            brush.line(line, colour, width, joint="curve")
        elif line:
            (x, y), radius = line[0], 1 + width // 2
            brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        brush.text((left + INSET + 150 * i, top - LINE - 4), name, colour, text_font())


def linear_ticks(low: float, high: float, least_step: float = 0.0) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten, which enclose low < high."""
    rough = max((high - low) / 5, least_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((times * power for times in (1, 2, 5) if times * power >= rough), 10 * power)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times them where there are few, which enclose 0 < low < high."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = math.ceil((last - first) / 5)
    powers = range(first - step, last + step + 1, step)
    ticks = [times * 10.0**power for power in powers for times in ((1, 2, 5) if last - first <= 2 else (1,))]
    return ticks[bisect_right(ticks, low) - 1 : bisect_left(ticks, high) + 1]
