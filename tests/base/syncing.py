"""A file system that refuses to sync files or folders."""

import os
from collections.abc import Callable

import pytest


def refuse_to_sync(monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], bool], number: int) -> None:
    """os.fsync raises the error `number` for what is of this `kind`, such as stat.S_ISDIR; all else it syncs."""
    whole = os.fsync

    def fsync(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
