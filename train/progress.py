"""Progress bars: lively on a terminal, a line every half minute in a log or a notebook, which keep every line."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """A `tqdm` bar with these options."""
    on_terminal = sys.stderr.isatty()
    return tqdm(iterable, mininterval=0.1 if on_terminal else 30.0, dynamic_ncols=on_terminal, **options)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line above a bar that may be there."""
    tqdm.write(line, file or sys.stdout)
