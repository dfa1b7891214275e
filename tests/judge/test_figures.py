"""Figures in words."""

import math

import pytest

from train.judge.figures import gain, interval, number, of, percent, points, sentence

FIGURE = {"mean": 0.931, "low": 0.92, "high": 0.942, "seeds": []}


def test_figures_are_written_as_people_read_them():
    assert interval(FIGURE) == "93.1%\u00a0[92.0,\u00a094.2]"
    assert gain({"mean": 0.023, "low": -0.01, "high": 0.036}, " points") == "+2.3 points\u00a0[\u22121.0,\u00a0+3.6]"
    assert (percent(1), points(-0.0123), of(3, 620)) == ("100.0%", "\u22121.2", "3 of 620 (0.5%)")


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_is_missing_is_a_dash(missing):
    assert {number(missing), percent(missing), gain(None)} == {"\u2013"}


@pytest.mark.parametrize("nothing", [0.0, -0.0, 0.0004, -0.0004])
def test_nought_has_no_sign(nothing):
    assert points(nothing) == "0.0"


def test_a_small_share_is_not_called_nought():
    assert of(1, 2480) == "1 of 2,480 (under 0.1%)"
    assert of(0, 2480) == "0 of 2,480 (0.0%)"


def test_a_sentence_begins_and_ends_as_sentences_do():
    assert sentence("a gain of -1.2 [-2.0, +0.1] on a-1") == "A gain of \u22121.2 [\u22122.0, +0.1] on a-1."
    assert sentence("Why?") == "Why?"
