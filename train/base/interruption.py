"""A wish to end something in its midst, which has to wait while processes exchange something: they would lose step."""

from collections.abc import Iterator
from contextlib import contextmanager

from train.base.errors import Interrupted

_waits = _came = False


def interrupt() -> None:
    """Raise Interrupted; where it has to wait, in what is `released` next."""
    global _came
    if not _waits:
        raise Interrupted
    _came = True


@contextmanager
def waiting() -> Iterator[None]:
    """While entered, an interruption waits; at the end one that nothing was released for is forgotten."""
    global _waits, _came
    before, _waits, _came = _waits, True, False
    try:
        yield
    finally:
        _waits = before


@contextmanager
def released() -> Iterator[None]:
    """Within `waiting`: work that can be interrupted."""
    global _waits
    before, _waits = _waits, False
    try:
        if _came:
            raise Interrupted
        yield
    finally:
        _waits = before
