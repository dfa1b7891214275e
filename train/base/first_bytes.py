"""Files that are not what their name says: known by their first bytes, and never waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

LOOKED_AT = 512  # bytes
LFS = b"version https://git-lfs.github.com/spec/"
WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
TEXT = bytes({*range(0x20, 0x7F), *b"\t\n\r"})
BLANK = b"\xef\xbb\xbf \t\r\n"


def open_file(path: Path) -> BinaryIO:
    """The file opened for reading; OSError for a pipe or a device, which may have no end, or never begin."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a directory, `open` itself says what it is
        raise OSError("not a file, but a pipe or a device")
    return open(path, "rb")


def disguise(path: Path) -> str:
    """What stands in the place of a file, as in "is a web page; ..."; "" where nothing is known to do so."""
    start = _start(path)
    if start.startswith(LFS):
        return "is a Git LFS pointer in the place of the file; run git lfs pull where it comes from, and copy it again"
    if start.lstrip(BLANK).lower().startswith(WEB_PAGES):
        return "is a web page in the place of the file; download the file itself (its link has /resolve/, not /blob/)"
    return "" if start else "is empty; save or copy it again"


def not_numbers(path: Path) -> str:
    """The same of a file of tensors, which no text is."""
    start = _start(path)
    line = start.lstrip(BLANK)[:60].partition(b"\n")[0]
    is_text = not start.translate(None, TEXT)
    return disguise(path) or (f"is text, which begins with {line.decode()!r}; save or copy it again" if is_text else "")


def _start(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(LOOKED_AT)
