"""The pictures that a run draws: grids of images, and curves."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.files import replacing

INK, PAPER, RULE = (30, 30, 30), (255, 255, 255), (222, 222, 222)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14))
GAP, LINE = 2, 16  # pixels: between the images of a grid; height of a line of text


def save_picture(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3, to a picture."""
    array = pixels.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def image_grid(rows: Sequence[tuple[str, Sequence[Tensor]]], headings: Sequence[str] = ()) -> Image.Image:
    """Rows of equally sized images (uint8, (C, H, W) each), a label before each, a heading above each column.

    A `headings` shorter than the rows stands above the first columns; an empty string leaves one out.
    """
    font = ImageFont.load_default(12)
    margin = max((math.ceil(font.getlength(label)) for label, _ in rows), default=0) + 8
    _, height, width = rows[0][1][0].shape
    top = LINE if headings else 0
    columns = max(len(images) for _, images in rows)
    size = (margin + columns * (width + GAP), top + len(rows) * (height + GAP))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(headings):
        draw.text((margin + column * (width + GAP), 1), heading, INK, font)
    for row, (label, images) in enumerate(rows):
        y = top + row * (height + GAP)
        draw.text((4, y + height / 2), label, INK, font, anchor="lm")
        for column, image in enumerate(images):
            canvas.paste(to_image(image), (margin + column * (width + GAP), y))
    return canvas


def line_chart(title: str, series: dict[str, Sequence[tuple[float, float]]], width=720, height=360) -> Image.Image:
    """Curves of (x, y) points, y on a logarithmic scale where all values are positive and span a decade."""
    font = ImageFont.load_default(12)
    points = [(x, y) for curve in series.values() for x, y in curve if math.isfinite(y)]
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((60, 6), title, INK, font)
    if not points:
        return canvas
    xs, ys = np.array(points).T
    logarithmic = ys.min() > 0 and ys.max() / ys.min() > 10
    scale = np.log10 if logarithmic else np.asarray
    x0, x1, y0, y1 = xs.min(), max(xs.max(), xs.min() + 1), scale(ys.min()), scale(ys.max())
    y1 = max(y1, y0 + 1e-9)
    left, right, top, bottom = 60, width - 16, 26, height - 34

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (x - x0) / (x1 - x0) * (right - left), bottom - (scale(y) - y0) / (y1 - y0) * (bottom - top))

    for tick in np.linspace(y0, y1, 5):
        value = 10**tick if logarithmic else tick
        y = bottom - (tick - y0) / (y1 - y0) * (bottom - top)
        draw.line([(left, y), (right, y)], RULE)
        draw.text((left - 6, y), f"{value:.3g}", INK, font, anchor="rm")
    for tick in np.linspace(x0, x1, 6):
        draw.text((place(tick, 10**y0 if logarithmic else y0)[0], bottom + 6), f"{tick:.0f}", INK, font, anchor="mt")
    for i, (name, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = [place(x, y) for x, y in curve if math.isfinite(y)]
        if len(line) > 1:
            draw.line(line, colour, 2)
        elif line:
            (x, y), = line
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        draw.text((left + 10 + 150 * (i % 4), height - 15), name, colour, font)
    return canvas
