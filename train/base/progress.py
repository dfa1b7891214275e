"""Progress bars: live on a terminal and in a notebook; one line every 30 seconds in a log, which keeps every line.

A command that a notebook starts (`!python -m train.X`) writes a log.
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from tqdm.auto import tqdm

IN_NOTEBOOK = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def progress(iterable: Iterable | None = None, leave: bool = True, **options) -> tqdm:
    """A `tqdm` bar with these options. In a log, one with `leave=False` appears only if it takes over 30 seconds."""
    on_terminal = sys.stderr.isatty()
    live = on_terminal or IN_NOTEBOOK
    interval = 0.1 if live else 30.0
    delay = 0.0 if live or leave else interval
    return tqdm(iterable, leave=leave, mininterval=interval, dynamic_ncols=on_terminal, delay=delay, **options)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line without breaking the bar that may be shown; a terminal that is gone does not end a run."""
    with suppress(OSError):
        tqdm.write(line, file or sys.stdout)
