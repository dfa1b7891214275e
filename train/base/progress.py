"""Progress bars: live on a terminal; one line every 30 seconds in a log or a notebook, which keep every line."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from tqdm import tqdm


def progress(iterable: Iterable | None = None, leave: bool = True, **options) -> tqdm:
    """A `tqdm` bar with these options. In a log, one with `leave=False` appears only if it takes over 30 seconds."""
    on_terminal = sys.stderr.isatty()
    interval = 0.1 if on_terminal else 30.0
    delay = 0.0 if on_terminal or leave else interval
    return tqdm(iterable, leave=leave, mininterval=interval, dynamic_ncols=on_terminal, delay=delay, **options)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line without breaking the bar that may be shown; a terminal that is gone does not end a run."""
    with suppress(OSError):
        tqdm.write(line, file or sys.stdout)
