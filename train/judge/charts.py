"""The charts of the report. Every number that they show stands in a table of the page too."""

import math
from collections.abc import Callable
from itertools import pairwise

from train.base.markup import Markup, element, joined
from train.judge.figures import gain, interval, number, percent, points
from train.judge.svg import LETTER, Scale, around, box, drawing, legend, line, mark, path, shortened, whisker, words

WIDTH = 400
LOOKS = {
    "without generated": ("circle", "without", "no generated images"),
    "with generated": ("diamond", "with", "real and generated images"),
    "alone": ("square", "alone", "no real images"),
}
"""The mark, the class and the meaning of a group of arms."""
MOST_USERS, MOST_BARS = 31, 60  # rows of a confusion matrix, and bars, that one can still read


def interval_key() -> Markup:
    equal = ("diamond", "with hollow", "hollow: at equal exposure to real images")
    reference = ("line", "reference", "best without generated images, and its interval")
    return legend([*LOOKS.values(), equal, reference])


def interval_plot(judge: str, arms: list[dict], baseline: dict, best: dict) -> Markup:
    """Accuracy and interval of each arm of one judge: filled at equal steps, hollow at equal exposure below it.

    `baseline` and `best` are the best arms without and with generated images. Those without real ones set no scale.
    """
    grouped: dict[tuple[str, str], list[dict]] = {}
    for group in LOOKS:
        for arm in (a for a in arms if a["group"] == group):
            grouped.setdefault((group, arm["name"]), []).append(arm)
    near = [arm["accuracy"] for arm in arms if arm["group"] != "alone"]
    scale = around([figure[end] for figure in near for end in ("low", "high")], 10, WIDTH - 52)
    y, shapes = 4.0, []
    for (group, name), entries in grouped.items():
        shape, class_, _ = LOOKS[group]
        y += 18
        shapes.append(words(0, y, name, "strong halo" if baseline in entries or best in entries else "halo"))
        for entry in entries:
            y += 13
            at_steps = entry["exposure"] == "steps"
            equal = "equal steps" if at_steps else "equal exposure to real images"
            told = f"{name}, at {equal}: {interval(entry['accuracy'])}"
            drawn = whisker(scale, entry["accuracy"], y, shape, class_ if at_steps else f"{class_} hollow")
            shapes.append(element("g", element("title", told), drawn))
            weight = "strong" if entry in (baseline, best) else None
            shapes.append(words(WIDTH, y + 4, percent(entry["accuracy"]["mean"]), weight, "end"))
        y += 4
    low, mean, high = (scale(baseline["accuracy"][key]) for key in ("low", "mean", "high"))
    below = [
        axis_x(scale, y + 6, 8, percents_for(scale)),
        box(low, 8, high - low, y - 2, "band"), line(mean, 8, mean, y + 6, "reference"),
    ]  # fmt: skip
    label = (
        f"Accuracy of every arm, judged by {judge}, with 95% intervals. Best without generated images: "
        f"{baseline['name']}, {interval(baseline['accuracy'])}. The table holds every number."
    )
    return drawing(WIDTH, y + 26, label, *below, *shapes)


def learning_curve(judge: str, curve: list[dict], with_generated: dict, times: float | None) -> Markup:
    """Accuracy by number of real images, and where real and generated images together stand on it.

    `times` is how many of all real images would do as well; None where they do not suffice.
    """
    top, bottom, left, right = 14, 206, 44, WIDTH - 12
    figures = [*(point["accuracy"] for point in curve), with_generated]
    most = curve[-1]["images"]
    x = Scale(0, 1.06 * most, left, right)
    y = around([figure[end] for figure in figures for end in ("low", "high")], bottom, top)
    height, low, high = (y(with_generated[key]) for key in ("mean", "low", "high"))
    shapes = [axis_y(y, left, right, percents_for(y)), axis_x(x, bottom, top, "{:,.0f}".format)]
    shapes += [box(left, high, right - left, low - high, "band with"), line(left, height, right, height, "with bar")]
    if times is not None:
        at = x(times * most)
        shapes += [line(at, height, at, bottom, "with dashed"), mark("diamond", at, height, "with", 5)]
        shapes += [words(at - 4, bottom - 6, f"{times * most:,.0f}", "figure halo", "end")]
    shapes.append(path([(x(point["images"]), y(point["accuracy"]["mean"])) for point in curve], "without"))
    for point in curve:
        at, figure = x(point["images"]), point["accuracy"]
        told = element("title", f"{point['images']:,} real images: {interval(figure)}")
        ends = line(at, y(figure["low"]), at, y(figure["high"]), "without bar")
        shapes.append(element("g", told, ends, mark("circle", at, y(figure["mean"]), "without")))
    shapes.append(words((left + right) / 2, bottom + 34, "real training images", anchor="middle"))
    told = "; ".join(f"{point['images']:,}: {percent(point['accuracy']['mean'])}" for point in curve)
    label = f"Accuracy by number of real images, {judge}. {told}. With generated images: {interval(with_generated)}."
    key = [("circle", "without", "real images alone"), ("line", "with", "real and generated images")]
    return joined([drawing(WIDTH, bottom + 42, label, *shapes), legend(key)])


def power_chart(bands: list[dict]) -> Markup:
    """Power over that of the real images in each band of spatial frequency; 1 is as much as there should be."""
    top, bottom, left, right = 14, 186, 44, WIDTH - 12
    kinds = [("reconstructed", "circle", "without"), ("generated", "diamond", "with")]
    x = Scale(bands[0]["low"], bands[-1]["high"], left, right)
    y = Scale(0, 1.1 * max(1.0, *(band[kind] for kind, _, _ in kinds for band in bands)), bottom, top)
    shapes = [axis_y(y, left, right, "{:.2g}".format), axis_x(x, bottom, top, "{:.2g}".format)]
    shapes += [line(left, y(1), right, y(1), "zero dashed")]
    for kind, shape, class_ in kinds:
        there = [(x((band["low"] + band["high"]) / 2), y(band[kind])) for band in bands]
        shapes += [path(there, class_), *(mark(shape, *at, class_) for at in there)]
    shapes.append(words((left + right) / 2, bottom + 34, "spatial frequency, cycles per pixel", anchor="middle"))
    told = "; ".join(f"{kind}: " + ", ".join(number(band[kind], ".2f") for band in bands) for kind, _, _ in kinds)
    label = f"Power over that of real images by spatial frequency, from coarse to fine. {told}."
    key = legend([(s, c, kind) for kind, s, c in kinds] + [("line", "zero dashed", "as much as in real images")])
    return joined([drawing(WIDTH, bottom + 42, label, *shapes), key])


def most_confused(confusion: list[list[int]]) -> list[int]:
    """The users of a heat map: all where there is room, otherwise those that most images are confused with or of."""
    count = len(confusion)
    if count <= MOST_USERS:
        return list(range(count))
    wrong = [sum(confusion[u]) + sum(row[u] for row in confusion) - 2 * confusion[u][u] for u in range(count)]
    return sorted(sorted(range(count), key=lambda u: -wrong[u])[:MOST_USERS])


def heat_map(names: list[str], confusion: list[list[int]]) -> Markup:
    """The share of each user's images (rows: asked for) that are recognised as each user (columns)."""
    chosen, letters, cell = most_confused(confusion), 12, 16
    labels = {user: shortened(names[user], letters) for user in chosen}
    edge = 30 + LETTER * max(map(len, labels.values()))
    side = cell * len(chosen)
    shapes = [box(edge, edge, side, side, "frame"), words(edge + side / 2, 11, "recognised as", anchor="middle")]
    turned = f"translate(11 {edge + side / 2:.1f}) rotate(-90)"
    shapes.append(words(0, 0, "asked for", anchor="middle", transform=turned))
    for place, user in enumerate(chosen):
        middle = edge + cell * (place + 0.5)
        shapes.append(words(edge - 5, middle + 4, labels[user], anchor="end"))
        shapes.append(words(0, 0, labels[user], transform=f"translate({middle + 4:.1f} {edge - 5:.1f}) rotate(-90)"))
        total = sum(confusion[user])
        for column, other in enumerate(chosen):
            if count := confusion[user][other]:
                told = f"asked for {names[user]}, recognised as {names[other]}: {count} of {total}"
                # The root, so that one image of forty can still be seen.
                at, share = edge + cell * column, f"{math.sqrt(count / total):.2f}"
                class_ = "right" if user == other else "wrong"
                tile = box(at, middle - cell / 2, cell, cell, class_, element("title", told), fill_opacity=share)
                shapes.append(tile)
    right, total = sum(confusion[u][u] for u in range(len(names))), sum(map(sum, confusion))
    size = max(edge + side + 2, 200)
    label = f"Confusion matrix of {len(chosen)} users: {right} of {total} images are recognised as the user asked for."
    return drawing(size, edge + side + 2, label, *shapes, style=f"max-width: {1.35 * size:.0f}px")


def gain_bars(users: list[dict]) -> Markup:
    """The gain of each user in points, best first; of very many, those who gain and those who lose most."""
    ordered = sorted(users, key=lambda user: -user["gain"])
    half = MOST_BARS // 2
    shown = ordered if len(ordered) <= MOST_BARS else [*ordered[:half], *ordered[-half:]]
    labels = [shortened(user["name"], 14) for user in shown]
    gains = [user["gain"] for user in shown]
    left = 8 + LETTER * max(map(len, labels))
    x = around([0.0, *gains], left + 38, WIDTH - 38)
    row, top = 20, 6
    bottom = top + row * len(shown)
    shapes = [axis_x(x, bottom, top, points)]
    for place, (label, user) in enumerate(zip(labels, shown, strict=True)):
        y, value = top + row * place, user["gain"]
        shapes.append(words(left - 4, y + 14, label, anchor="end"))
        shapes.append(box(x(0), y + 4, x(value) - x(0), row - 8, "gains" if value > 0 else "loses"))
        after = (x(value) + 4, None) if value >= 0 else (x(value) - 4, "end")
        shapes.append(words(after[0], y + 14, points(value), "figure halo", after[1]))
    shapes.append(line(x(0), top, x(0), bottom, "zero"))
    up, down = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    label = f"Gain of each of {len(shown)} users in points: {up} gain, {down} lose. The table holds every number."
    return drawing(WIDTH, bottom + 22, label, *shapes)


def gain_gauge(figure: dict, gains: list[dict]) -> Markup:
    """A gain and its interval beside nought, on a scale that holds all of `gains`, so that they compare."""
    x = around([0.0, *(each[end] for each in gains for end in ("low", "high"))], 30, WIDTH - 30)
    mean, y, bottom = x(figure["mean"]), 28, 46
    shapes = [
        axis_x(x, bottom, y - 8, points), line(x(0), y - 8, x(0), bottom + 3, "zero"),  # below the figure
        words(x(0), bottom + 30, "no difference", "tick", "middle"),
        line(x(figure["low"]), y, x(figure["high"]), y, "gauge"), mark("diamond", mean, y, "gauge", 6),
        words(mean, y - 12, points(figure["mean"]), "figure halo", "middle"),
    ]  # fmt: skip
    return drawing(WIDTH, bottom + 36, f"Gain in points with its 95% interval: {gain(figure)}", *shapes)


def percents_for(scale: Scale) -> Callable[[float], str]:
    """How the ticks of a scale of shares are written: with decimals where whole percents would repeat themselves."""
    fine = any(b - a < 0.0099 for a, b in pairwise(scale.ticks()))
    return lambda share: f"{100 * share:.{1 if fine else 0}f}%"


def axis_x(scale: Scale, bottom: float, top: float, written: Callable[[float], str]) -> Markup:
    """Ticks along the bottom, with lines up to the top."""
    shapes = [line(scale.start, bottom, scale.end, bottom, "axis")]
    for tick in scale.ticks():
        shapes += [line(scale(tick), top, scale(tick), bottom, "grid")]
        shapes += [words(scale(tick), bottom + 15, written(tick), "tick", "middle")]
    return joined(shapes)


def axis_y(scale: Scale, left: float, right: float, written: Callable[[float], str]) -> Markup:
    """Ticks along the left side, with lines to the right."""
    shapes = []
    for tick in scale.ticks():
        shapes += [line(left, scale(tick), right, scale(tick), "grid")]
        shapes += [words(left - 5, scale(tick) + 4, written(tick), "tick", "end")]
    return joined(shapes)
