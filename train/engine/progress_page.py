"""`progress.html`: how far a run is, its curves, its pictures over time and its memory; a page that needs nothing else.

It is written anew at each validation, and the browser that shows it reads it again every minute while the run goes on.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from train.base.markup import Markup, element, joined, note, table
from train.base.page import page, picture
from train.base.units import duration, gib, mib
from train.engine.device import peak_memory
from train.engine.log import RunLog
from train.engine.stage import Stage

REFRESH = 60  # seconds
PICTURES = 8  # at most; the first and the last of the run are among them


class ProgressPage:
    """The page of a run that goes on after optimizer step `step`."""

    def __init__(self, stage: Stage, step: int, total_steps: int, device: torch.device):
        self.stage, self.began_with, self.total_steps, self.device = stage, step, total_steps, device
        self.began_at = time.monotonic()

    def write(self, log: RunLog, step: int, memory: dict[str, dict[str, int]], stopped: bool = False) -> None:
        """Draw the curves, and the page that shows them with all else there is to be seen after this step.

        memory: predicted bytes at the peak of a step by component, then category; empty where nothing predicts them.
        """
        if not log.writes:  # but in the first process
            return
        stage, left = self.stage, self.total_steps - step
        log.save_curves(stage.title, stage.curves)
        standing = f"step {step:,} of {self.total_steps:,}"
        standing += "; stopped, and goes on from there when it is started again" if stopped and left else ""
        pace = (time.monotonic() - self.began_at) / max(step - self.began_with, 1)
        whose = "tensors on the GPU" if self.device.type == "cuda" else "the process"
        facts = {
            "loss": f"{log.last('loss') or 0:.4f}",
            "images per second": f"{log.last('images_per_second') or 0:,.1f}",
            f"most memory of {whose}": f"{gib(peak_memory(self.device))} GiB",
            "time left, at this pace": duration(pace * left) if left and not stopped else None,
            "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        listed = ([element("dt", name), element("dd", figure)] for name, figure in facts.items() if figure)
        shown = some_of(sorted(stage.picture_of(step).parent.glob("*.png")))
        made = [picture(read(path), f"after step {int(path.stem):,}") for path in reversed(shown)]
        parts = {
            "Curves": picture(read(log.curves_path), "by optimizer step; each scale is that of the names above it"),
            "What it makes, newest first": element("div", *made, class_="pair") if made else "",
            "Memory": memory_table(memory),
        }
        sections = joined(element("section", element("h2", name), what) for name, what in parts.items() if what)
        header = element("header", element("h1", stage.title), element("p", standing, class_="lead"),
                         element("dl", *map(joined, listed), class_="card"))  # fmt: skip
        refresh = REFRESH if left and not stopped else None
        log.save_page(page(f"{stage.title}: {standing}", header, element("main", sections), refresh=refresh))


def some_of(pictures: Sequence[Path]) -> list[Path]:
    """At most PICTURES of them, evenly over time."""
    last, most = len(pictures) - 1, PICTURES - 1
    return [pictures[i] for i in sorted({round(last * place / most) for place in range(PICTURES)})] if pictures else []


def memory_table(memory: dict[str, dict[str, int]]) -> Markup:
    """Bytes by component, then category, as a table; nothing where none are known."""
    if not memory:
        return Markup()
    totals = {category: sum(row[category] for row in memory.values()) for category in next(iter(memory.values()))}
    used = [category for category, count in totals.items() if count]
    rows = [
        [name, *(mib(row[category]) for category in used), mib(sum(row.values()))]
        for name, row in [*memory.items(), ("all", totals)] if any(row.values())
    ]  # fmt: skip
    words = "MiB at the peak of a step: predicted, by tracing the first steps (train.memcheck)"
    return joined([table(words, ["", *used, "all"], rows), note("A dash stands for nothing.")])


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()
