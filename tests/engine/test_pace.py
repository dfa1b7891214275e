"""What a run says of its pace."""

import math

import pytest

from train.engine import pace
from train.engine.pace import STEPS, Pace


@pytest.mark.parametrize(("waited", "slowed"), [(None, False), (0.1, False), (0.63, True)])
def test_the_time_left_is_that_of_the_steps_so_far(monkeypatch, capsys, waited, slowed):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(pace.Waiting, "share", lambda _: waited)
    said = Pace("LDM", 1000, 4000)
    for step in range(1001, 1100):
        now[0] += 0.5
        said.look(step)
    out, err = capsys.readouterr()
    left = 3000 - STEPS
    minutes = math.ceil(left * 0.5 / 60)
    assert out == f"LDM: about {minutes} minutes for the {left:,} steps that are left, without validations\n"
    assert ("63.0% of the time" in err) == slowed
    assert bool(err) == slowed


def test_a_short_run_says_nothing_of_its_pace(capsys):
    said = Pace("LDM", 0, STEPS)
    for step in range(1, STEPS + 1):
        said.look(step)
    assert capsys.readouterr() == ("", "")
