"""Names and paths as people read and write them.

An accent is the same whether it is stored in one code point (NFC) or in two (NFD), and a path may start with `~` and
hold `$NAME`.
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import NewType

from train.base.errors import require

PathText = NewType("PathText", str)
"""A path in a config: it is expanded as it is read."""
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def composed(name: str) -> str:
    """The name in NFC, in which names are compared, sorted and saved."""
    return unicodedata.normalize("NFC", name)


def located(folder: Path, name: str) -> Path:
    """Where a path within a folder is, however its accents are stored there; as it is given where nothing is."""
    for part in Path(name).parts:
        inner = folder / part
        if not inner.exists() and folder.is_dir():
            alike = (entry for entry in folder.iterdir() if composed(entry.name) == composed(part))
            inner = next(alike, inner)
        folder = inner
    return folder


def path_of(given: str | os.PathLike[str]) -> Path:
    """The path that somebody has written or typed, expanded."""
    return Path(expanded(os.fspath(given)))


def expanded(path: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced, as a shell does; UserError where one is not known.

    Nothing is replaced in the very name of something that is there.
    """
    if os.path.lexists(path):
        return path
    for name in (match[1] or match[2] for match in VARIABLE.finditer(path)):
        require(os.environ.get(name), f"{path}: the variable {name} is not set")
    home = os.path.expanduser(path) if path.startswith("~") else path
    require(not home.startswith("~"), f"{path}: there is no home of {path.partition('/')[0][1:]} on this machine")
    return VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], home)
