"""The document of published figures is what its command prints; one row stands for all, since each is a trace."""

from pathlib import Path

from tests.memory import published

DOCUMENT = Path(__file__).parents[2] / "docs/memory_published.md"


def test_a_row_of_the_published_figures_is_what_the_account_says():
    run = ("fp16", 1, True, True)
    assert f"| {' | '.join(published.row(*run)[:3])} " in " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    off = abs(published.predicted(*run) / published.GB / published.PUBLISHED[run] - 1)
    assert off < 0.06
