"""Drawing with SVG: a scale with round ticks, lines, words, marks. The colours are classes of page.css.

A drawing is about as wide as a telephone, so that its words stay legible there; `x` runs right and `y` down.
"""

import math
from dataclasses import dataclass

from train.base.markup import Markup, element, joined

LETTER = 6.8  # pixels, about the width of a letter in a chart


@dataclass(frozen=True)
class Scale:
    """A linear map from the numbers `low` to `high` onto the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a number; numbers beyond the ends stand at the ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers within the scale: multiples of 1, 2 or 5 times a power of ten."""
        wanted = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(wanted))
        step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda s: abs(s - wanted))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def around(values: list[float], start: float, end: float, least: float = 0.02, margin: float = 0.06) -> Scale:
    """A scale that holds these numbers with some room at both ends, and spans at least `least`."""
    low, high = min(values), max(values)
    room = max((high - low) * margin, (least - (high - low)) / 2)
    return Scale(low - room, high + room, start, end)


def drawing(width: float, height: float, label: str, *shapes: object, **attributes: object) -> Markup:
    """A picture with its description in words, for those who do not see it."""
    return element("svg", *shapes, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **attributes)


def words(x: float, y: float, content: str, class_: str | None = None, anchor: str | None = None, **more) -> Markup:
    """anchor: which part of the words stands at x, "middle" or "end"; otherwise their start."""
    return element("text", content, x=round(x, 1), y=round(y, 1), class_=class_, text_anchor=anchor, **more)


def shortened(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=round(x1, 1), y1=round(y1, 1), x2=round(x2, 1), y2=round(y2, 1), class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str, *children: object, **more) -> Markup:
    """A rectangle; a negative width or height turns it over."""
    x, y = min(x, x + width), min(y, y + height)
    size = {"width": round(abs(width), 1), "height": round(abs(height), 1)}
    return element("rect", *children, x=round(x, 1), y=round(y, 1), **size, class_=class_, **more)


def path(points: list[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(shape: str, x: float, y: float, class_: str, size: float = 4) -> Markup:
    """A mark that is told apart by its shape as well as its colour: "circle", "diamond", "square", "left", "right"."""
    if shape == "circle":
        return element("circle", cx=round(x, 1), cy=round(y, 1), r=size, class_=class_)
    corners = {
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "left": [(-1.2, 0), (1, -1.1), (1, 1.1)],
        "right": [(1.2, 0), (-1, -1.1), (-1, 1.1)],
    }[shape]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, class_=class_)


def whisker(scale: Scale, figure: dict, y: float, shape: str, class_: str) -> Markup:
    """A figure as a mark on its interval. One beyond the scale is an arrow at that end."""
    mean = figure["mean"]
    if not scale.holds(mean):
        shape = "left" if mean < scale.low else "right"
        return mark(shape, scale(mean), y, class_)
    ends = line(scale(figure["low"]), y, scale(figure["high"]), y, f"{class_} bar")
    return joined([ends, mark(shape, scale(mean), y, class_)])


def legend(entries: list[tuple[str, str, str]]) -> Markup:
    """The key of a chart, from (shape, class, words); the shape "line" is a stroke."""

    def key(shape: str, class_: str) -> Markup:
        drawn = line(1, 7, 21, 7, class_) if shape == "line" else mark(shape, 11, 7, class_)
        return element("svg", drawn, viewBox="0 0 22 14", width=22, height=14, aria_hidden="true")

    return element("p", joined(element("span", key(s, c), meaning) for s, c, meaning in entries), class_="legend")
