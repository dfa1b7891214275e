"""Names as people read them: an accent is the same whether it is stored in one code point (NFC) or in two (NFD)."""

import unicodedata
from pathlib import Path


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
