"""What a log keeps of a progress bar."""

import pytest

from train.base import progress as module
from train.base.progress import progress


@pytest.mark.parametrize(("in_notebook", "seconds"), [(True, 0.1), (False, 30.0)])
def test_a_bar_is_live_in_a_notebook_and_seldom_in_a_log(monkeypatch, in_notebook, seconds):
    monkeypatch.setattr(module, "IN_NOTEBOOK", in_notebook)
    with progress(total=3, leave=False) as bar:
        assert bar.mininterval == seconds
        assert bar.delay == (0.0 if in_notebook else seconds)


def test_a_bar_that_is_soon_gone_leaves_nothing_in_a_log(capsys):
    assert list(progress(range(3), desc="reading images", leave=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_that_stays_ends_its_line_in_a_log(capsys):
    for _ in progress(range(3), desc="VAE"):
        pass
    said = capsys.readouterr().err
    assert "3/3" in said
    assert said.endswith("\n")
