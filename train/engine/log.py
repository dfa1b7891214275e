"""What a run leaves to be read (`metrics.jsonl`, TensorBoard's files, `curves.png`, `progress.html`), and its speed."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from train.base.files import replacing, writing
from train.base.optional import optional
from train.base.processes import rank
from train.data.images import save_picture
from train.runs.pictures import line_chart

tensorboard = optional("torch.utils.tensorboard", "tensorboard")
METRICS = "metrics.jsonl"


class RunLog:
    """Metrics by optimizer step. Started at step N, it forgets what an earlier run logged after N.

    And, at N, what it logged with the metric `again`, which will be logged once more. Only the first process writes.
    """

    def __init__(self, folder: Path, start_step: int, again: str | None = None):
        self.writes = rank() == 0
        if not self.writes:
            return
        self.path = folder / METRICS
        self.curves_path, self.page_path = folder / "curves.png", folder / "progress.html"
        self.lines = [
            line for line in read_lines(self.path) if line["step"] < start_step + (again not in line)
        ]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        self.tensorboard = tensorboard and tensorboard.SummaryWriter(folder / "tensorboard", purge_step=start_step + 1)

    def write(self, step: int, **values: float) -> None:
        if not self.writes:
            return
        self.lines.append({"step": step, **values})
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)

    def save_curves(self, title: str, panels: Sequence[Sequence[str]]) -> None:
        """A picture of these metrics over the optimizer steps, those of a panel together."""
        if not self.writes:
            return
        curves = [{name: self.curve(name) for name in names} for names in panels]
        save_picture(line_chart(title, curves, x_name="step"), self.curves_path)

    def save_page(self, text: str) -> None:
        with replacing(self.page_path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line[name]) for line in self.lines if name in line]


class Speed:
    """Images per second of training, without what is done between steps."""

    def __init__(self):
        self.images, self.since = 0, time.perf_counter()

    def add(self, images: int) -> None:
        self.images += images

    def read(self) -> float:
        """Images per second since the last reading."""
        now = time.perf_counter()
        speed = self.images / (now - self.since)
        self.images, self.since = 0, now
        return speed

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began


def read_lines(path: Path) -> list[dict]:
    """The metrics in a file, a dictionary for each line; none where there is no file.

    What is no line of metrics is left out: half a line of a process that was killed, or what somebody wrote into it.
    """
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int and _is_number(line["step"]):
            lines.append({name: value for name, value in line.items() if _is_number(value)})
    return lines


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
