"""The last part of the report: how every figure came about, with settings and seeds."""

from collections.abc import Iterator

from train.base.markup import Markup, element, joined, lead, table
from train.base.units import counted, duration
from train.judge.figures import NONE, percent

WHERE = {"held_out": "held-out", "test_dir": "other conditions"}
EXPLAINED = (
    "An accuracy is the share of test images whose person the judge names, a mean over the seeds. A gain is a "
    "difference of accuracies in points, image by image: from 93.1% to 95.4% it is +2.3 points.",
    "What stands behind a figure in brackets, as in 93.1% [92.0, 94.2], is its 95% interval. It allows for two sources "
    "of chance: other seeds, and other recordings to test on, whose images go right or wrong together. Of generated "
    "images each counts as a recording of its own. The weakest quarter's intervals allow for other seeds only.",
    "A seed draws the network's first weights, the order of the images and how they are augmented, and, where an arm "
    "takes only some images, which.",
    "Nothing has learned from the test images; the number of steps, too, was found on training images. Only which arms "
    "are best is told by the test images. That makes no gain: the intervals of a judge's gains hold for all arms at "
    "once, and the arm that has to be beaten is the best of those without generated images.",
)


def method(evaluation: dict, titles: dict[str, str]) -> Markup:
    """Settings and seeds. They are folded up at first, and open on paper."""
    seeds = counted(len(evaluation["settings"]["seeds"]), "seed")
    answer = f"On {seeds} for each figure, from {evaluation['seed']} on; it took {duration(evaluation['seconds'])}."
    drawn = [
        (arm["name"], titles[arm["judge"]], WHERE[key], f"equal {arm['exposure']}",
         "  ".join(percent(value) for value in arm["accuracy"]["seeds"]))
        for key, found in evaluation["results"].items() for arm in found["arms"]
    ]  # fmt: skip
    headings = ["arm", "judge", "tested on", "at", "accuracy with each seed"]
    folded = element(
        "details",
        element("summary", "Settings, and every seed of every arm"),
        table("Settings", ["setting", "value"], settings(evaluation, titles), words=["value"]),
        table("Every seed", headings, drawn, words=headings[1:]),
    )
    told = (element("p", words) for words in EXPLAINED)
    return joined([lead("What do the numbers rest on?", answer), *told, folded])


def settings(evaluation: dict, titles: dict[str, str]) -> Iterator[tuple[str, object]]:
    """All that a figure depends on, as rows of a table."""
    yield "model", evaluation["model"]
    yield "generated images", evaluation["images"]
    yield "images of other conditions", evaluation["test_dir"] or NONE
    yield "quick run", "yes" if evaluation["quick"] else "no"
    data = evaluation["data"]
    yield "resolution", f"{data['resolution']} pixels, {counted(data['channels'], 'channel')}"
    for judge in evaluation["judges"]:
        if judge["steps"]:
            yield f"steps of {titles[judge['name']]}", f"{judge['steps']:,} (at most {judge['most_steps']:,})"
    yield from flat(evaluation["settings"])


def flat(within: dict, before: str = "") -> Iterator[tuple[str, str]]:
    """Settings within settings as rows: "section.key" and the value."""
    for key, value in within.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
