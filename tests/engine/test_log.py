"""The log of a run has each step once, its curves their panels, and its speed no pauses."""

import json

import pytest
from PIL import Image

from train.engine import log as log_module
from train.engine.log import RunLog, Speed

HEADING, PANEL = 48, 220  # pixels of the picture's height


def logged(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_log_begun_at_a_step_forgets_those_after_it(tmp_path):
    first = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, loss=step / 2)
    again = RunLog(tmp_path, 2)
    assert logged(tmp_path) == again.lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    again.write(3, loss=9.0)
    assert logged(tmp_path)[-1] == {"step": 3, "loss": 9.0}


def test_a_line_cut_short_by_a_death_is_dropped(tmp_path):
    RunLog(tmp_path, 0).write(1, loss=0.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    again = RunLog(tmp_path, 2)
    again.write(3, loss=0.25)
    assert logged(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_only_the_first_process_writes_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "rank", lambda: 1)
    log = RunLog(tmp_path, 0)
    log.write(1, loss=0.5)
    log.save_curves("x", [("loss",)])
    assert list(tmp_path.iterdir()) == []


def test_curves_that_are_asked_for_together_share_a_panel(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 5):
        log.write(step, loss=1 / step, validation_loss=2 / step, validation_psnr=20.0 + step)
    together, apart = [("loss", "validation_loss")], [("loss", "validation_loss"), ("validation_psnr",)]
    for panels in (together, apart, [*apart, ("not_logged",)]):
        log.save_curves("x", panels)
        with Image.open(tmp_path / "curves.png") as image:
            assert image.height == HEADING + min(len(panels), 2) * PANEL


def test_a_reading_of_speed_is_of_what_came_since_the_last(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    speed = Speed()
    for images, seconds, pause in ((6, 2, 50), (1, 4, 0)):
        speed.add(images)
        now[0] += seconds
        with speed.paused():
            now[0] += pause
        assert speed.read() == pytest.approx(images / seconds)


ODD = (
    "3", "null", "[]", '"x"', "[1, 2]", "{}", '{"loss": 1}', '{"step": null, "loss": 1}', '{"step": "1", "loss": 1}',
    '{"step": 1.5, "loss": 1}', '{"step": true, "loss": 1}', '{"step": NaN, "loss": 1}', '{"step": 1, "loss": null}',
    '{"step": 1, "loss": "low"}', '{"step": 1, "loss": [0.5]}', '{"step": 1, "loss": true}', '{"step": 1, "loss": NaN}',
    '{"step": 1, "loss": 1e999}', '{"step": 1, "loss": -1.7e308}', '{"step": 2, "loss": 1.7e308}',
    '{"step": 1, "loss": 5e-324}', '{"step": -9223372036854775808, "loss": 2}',
    '{"step": 1, "loss": 1' + "0" * 400 + "}",
    '{"step": 1' + "0" * 5000 + "}", "[" * 100_000, "\x00", "\udcff\udcfe", "\ufeff{}", "", "  ", "}{",
)  # fmt: skip


@pytest.mark.parametrize("lines", [*([line] for line in ODD), ODD], ids=range(len(ODD) + 1))
def test_odd_lines_in_the_metrics_end_no_run(tmp_path, lines):
    text = "\n".join(['{"step": 1, "loss": 0.5}', *lines, '{"step": 2, "loss": 0.25}'])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    log = RunLog(tmp_path, 2)
    log.write(3, loss=0.125)
    log.save_curves("x", [("loss",)])
    assert [line for line in logged(tmp_path) if line["step"] == 3] == [{"step": 3, "loss": 0.125}]
    assert {"step": 1, "loss": 0.5} in logged(tmp_path)
    assert {"step": 2, "loss": 0.25} in logged(tmp_path)
