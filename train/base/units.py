"""Bytes and counts as text."""

import math

MiB, GiB = 2**20, 2**30


def mib(count: int) -> str:
    """Bytes in MiB, or "-" for 0, for the cell of a table."""
    return f"{count / MiB:,.1f}" if count else "-"


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / GiB:.2f}"


def in_units(count: int) -> str:
    """Bytes in MiB or GiB, with the unit."""
    return f"{count / GiB:.1f} GiB" if count >= GiB else f"{count / MiB:.1f} MiB"


def counted(number: int, thing: str) -> str:
    """A number and its noun, as in "1 image" or "2,000 images"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share with one decimal, as in "93.1%"."""
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign, as in "+2.3"."""
    return f"{100 * difference:+.1f}"


def duration(seconds: float) -> str:
    """A time in seconds or minutes, rounded up, as in "40 seconds" or "7 minutes"."""
    return counted(math.ceil(seconds), "second") if seconds < 60 else counted(math.ceil(seconds / 60), "minute")
