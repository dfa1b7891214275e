"""Drawings: scales are linear, ticks are round, and charts hold what they are given."""

import re

import pytest

from tests.judge.sample_evaluation import sample_evaluation
from train.judge.charts import gain_bars, heat_map, interval_plot, learning_curve, most_confused
from train.judge.svg import Scale, around


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 4.1), (0.9312, 0.9488), (0, 1240), (1e-6, 3e-6)])
def test_a_scale_is_linear_and_its_ticks_are_round(low, high):
    scale = Scale(low, high, 40, 360)
    assert (scale(low), scale((low + high) / 2), scale(high)) == (40, 200, 360)
    assert scale(high + 1) == 360
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(low - 1e-12 <= tick <= high + 1e-9 for tick in ticks)
    step = f"{ticks[1] - ticks[0]:.6e}"
    assert step[0] in "125"
    assert float(step.split("e")[0]) == pytest.approx(int(step[0]))


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.2, 0.9]])
def test_a_scale_around_numbers_has_room_beside_them(values):
    scale = around(values, 0, 100)
    assert scale.low < min(values)
    assert scale.high > max(values)
    assert scale.high - scale.low >= 0.02 - 1e-12


def test_marks_of_an_interval_plot_stand_in_the_order_of_their_accuracies():
    arms = [arm for arm in sample_evaluation()["results"]["held_out"]["arms"] if arm["judge"] == "ridge"]
    without = [arm for arm in arms if arm["group"] == "without generated"]
    drawn = interval_plot("ridge", arms, without[0], arms[1])
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    means = [arm["accuracy"]["mean"] for arm in without]
    assert sorted(range(len(without)), key=places.__getitem__) == sorted(range(len(without)), key=means.__getitem__)
    assert drawn.count("<g>") == len(arms)
    assert drawn.count("<polygon") == len(arms) - len(without)


@pytest.mark.parametrize("times", [None, 0.0, 0.4, 1.0])
def test_a_learning_curve_shows_what_the_images_are_worth(times):
    curve = sample_evaluation()["results"]["held_out"]["learning_curve"][:4]
    drawn = learning_curve("network", curve, curve[-1]["accuracy"], times)
    shown = re.findall(r'class="figure halo"[^>]*>([\d,]+)<', drawn)
    assert shown == ([] if times is None else [f"{620 * times:.0f}"])


def test_a_heat_map_has_a_tile_for_each_count_above_nought():
    drawn = heat_map(["a", "b", "c"], [[4, 0, 1], [0, 5, 0], [2, 0, 3]])
    assert drawn.count('class="right"') == 3
    assert drawn.count('class="wrong"') == 2
    assert "asked for c, recognised as a: 2 of 5" in drawn
    assert "12 of 15 images" in drawn


def test_a_heat_map_of_many_shows_those_who_are_confused():
    confusion = [[10 * (row == column) for column in range(40)] for row in range(40)]
    confusion[38][2] = confusion[3][39] = 4
    chosen = most_confused(confusion)
    assert len(chosen) == 31
    assert {2, 3, 38, 39} <= set(chosen)


def test_bars_of_very_many_users_show_both_ends():
    users = [{"name": f"u{i:03}", "gain": i / 1000 - 0.05} for i in range(100)]
    drawn = gain_bars(users)
    assert all((f">u{i:03}<" in drawn) == (i < 30 or i >= 70) for i in range(100))
