"""Bytes and counts as text."""

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
    """A number and its noun, as in "1 image" or "2 images"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
