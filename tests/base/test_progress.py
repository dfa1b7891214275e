"""What a log keeps of a progress bar."""

from train.base.progress import progress


def test_a_bar_that_is_soon_gone_leaves_nothing_in_a_log(capsys):
    assert list(progress(range(3), desc="reading images", leave=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_that_stays_ends_its_line_in_a_log(capsys):
    for _ in progress(range(3), desc="VAE"):
        pass
    said = capsys.readouterr().err
    assert "3/3" in said
    assert said.endswith("\n")
