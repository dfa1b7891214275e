"""The pictures that a run draws: grids of images, and curves."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.files import replacing

PICTURE_BATCH = 8  # images that a model makes at once for a picture during training
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


def line_chart(
    title: str, series: dict[str, Sequence[tuple[float, float]]], width: int = 720, height: int = 360
) -> Image.Image:
    """Curves of (x, y) points, y on a logarithmic scale where all are positive and span more than a decade.

    Points whose y is not finite are left out; a lone point is a dot.
    """
    font = ImageFont.load_default(12)
    points = [(x, y) for curve in series.values() for x, y in curve if math.isfinite(y)]
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((60, 6), title, INK, font)
    if not points:
        return canvas
    xs, ys = np.array(points).T
    logarithmic = ys.min() > 0 and ys.max() > 10 * ys.min()
    scale, unscale = (math.log10, lambda y: 10**y) if logarithmic else (float, float)
    x0, x1, y0, y1 = xs.min(), xs.max(), scale(ys.min()), scale(ys.max())
    x1 = max(x1, x0 + 1)
    if y0 == y1:  # a constant: the lowest line of the chart
        y1 = y0 + (abs(y0) or 1.0)
    left, right, top, bottom = 60, width - 16, 26, height - 34

    def column(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (right - left)

    def row(scaled_y: float) -> float:
        return bottom - (scaled_y - y0) / (y1 - y0) * (bottom - top)

    for tick in np.linspace(y0, y1, 5):
        draw.line([(left, row(tick)), (right, row(tick))], RULE)
        draw.text((left - 6, row(tick)), f"{unscale(tick):.3g}", INK, font, anchor="rm")
    for tick in np.linspace(x0, x1, 6):
        draw.text((column(tick), bottom + 6), f"{tick:.0f}", INK, font, anchor="mt")
    for i, (name, curve) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = [(column(x), row(scale(y))) for x, y in curve if math.isfinite(y)]
        if len(line) > 1:
            draw.line(line, colour, 2)
        elif line:
            x, y = line[0]
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        draw.text((left + 10 + 150 * (i % 4), height - 15), name, colour, font)
    return canvas
