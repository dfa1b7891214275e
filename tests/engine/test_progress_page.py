"""The page of a run: how far it is, and pictures and figures that are the run's own."""

import base64
import re
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from train.base.units import MiB
from train.engine.log import RunLog
from train.engine.progress_page import PICTURES, REFRESH, ProgressPage, memory_table, some_of
from train.engine.stage import Stage

CPU = torch.device("cpu")


class PicturedStage:
    title, curves, pictures, picture_of = "LDM <b>", (("loss",),), "samples", Stage.picture_of

    def __init__(self, folder):
        self.training = SimpleNamespace(output_dir=folder)


@pytest.fixture
def written(tmp_path):
    def written(step: int, stopped: bool = False) -> str:
        """The page of a run of 100 steps that began with step 10, a picture every ten steps."""
        stage, log = PicturedStage(tmp_path), RunLog(tmp_path, 0)
        (tmp_path / "samples").mkdir(exist_ok=True)
        for done in range(10, step + 1, 10):
            log.write(done, loss=1 / done, images_per_second=1234.5)
            Image.new("L", (8, 8), done).save(stage.picture_of(done))
        ProgressPage(stage, 10, 100, CPU).write(log, step, {"UNet": {"weights": 3 * MiB}}, stopped)
        return (tmp_path / "progress.html").read_text(encoding="utf-8")

    return written


def pictures_of(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(BytesIO(base64.b64decode(one))) for one in found]


@pytest.mark.parametrize(
    ("step", "stopped", "says", "not_said"),
    [
        (50, False, ["step 50 of 100", "time left", f'content="{REFRESH}"'], ["stopped"]),
        (50, True, ["step 50 of 100; stopped"], ["time left", f'content="{REFRESH}"']),
        (100, False, ["step 100 of 100"], ["time left", "stopped", f'content="{REFRESH}"']),
    ],
)
def test_a_page_reads_itself_again_while_the_run_goes_on(written, step, stopped, says, not_said):
    page = written(step, stopped)
    assert all(words in page for words in [*says, "1,234.5", f"{1 / step:.4f}", "LDM &lt;b&gt;"])
    assert not any(words in page for words in not_said)


def test_a_page_holds_its_curves_and_its_pictures_over_time(written):
    curves, *shown = pictures_of(written(100))
    assert curves.width > 100
    assert [image.getpixel((0, 0)) for image in shown] == [100, 90, 70, 60, 50, 40, 20, 10]
    assert "after step 40" in written(100)


@pytest.mark.parametrize("count", [0, 1, 2, PICTURES, PICTURES + 1, 1000])
def test_few_of_many_pictures_reach_from_the_first_to_the_last(count):
    some = some_of(range(count))
    assert len(some) == min(count, PICTURES)
    assert some == sorted(set(some))
    assert not count or (some[0], some[-1]) == (0, count - 1)


def test_the_table_of_memory_adds_up_and_leaves_out_what_is_empty():
    counts = {"VAE": (1, 0), "EMA": (0, 0), "UNet": (2, 4)}
    rows = {row: {"weights": w * MiB, "gradients": g * MiB, "half copies": 0} for row, (w, g) in counts.items()}
    table = memory_table(rows)
    cells = re.findall(r">([^<>]+)</t[hd]>", table)
    assert cells == ["weights", "gradients", "all", "VAE", "1.0", "-", "1.0", "UNet", "2.0", "4.0", "6.0",
                     "all", "3.0", "4.0", "7.0"]  # fmt: skip
    assert memory_table({}) == ""
