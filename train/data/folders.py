"""The users and their images in a folder; what else is in it, is not used, and that is said.

    data/ID1/walk1_000.png      the folder's name is the user's name
    data/ID1/walk1_001.png
    data/ID2/...
"""

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from train.base.errors import CONTROL, UserError, one_line, require, some
from train.base.folders import require_complete
from train.base.garbage import uncollected
from train.base.names import composed
from train.base.units import counted
from train.data.images import SUFFIXES

LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # files that systems leave in any folder
NO_USERS = (  # and folders
    "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "@tmp", "lost+found", "recycler",
    "$recycle.bin", "system volume information", "found.000", "__pycache__",
)  # fmt: skip
RESERVED = (  # files beside the folders of users in what commands write
    "augmented.json", "evaluation.json", "generated_and_real.png", "grid.png", "left_out.csv", "manifest.csv",
    "report.html", "settings.json",
)  # fmt: skip
OTHER = (*SUFFIXES, ".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".mat", ".npy", ".npz",
         ".pdf", ".pfm", ".psd", ".raw", ".svg", ".tga")  # fmt: skip
"""Of files that may well be somebody's pictures, whether they are read here or not."""
DIGITS = re.compile("([0-9]+)")


def natural_key(name: str) -> tuple:
    """Sort key for natural order: `ID2` before `ID10`; case decides only between otherwise equal names."""
    name = composed(name)
    parts = DIGITS.split(name.casefold())  # text and digits in turn, so keys always compare
    parts[1::2] = map(int, parts[1::2])
    return parts, name


@dataclass(frozen=True)
class Scan:
    """What a data folder holds."""

    users: list[str]  # names, in natural order
    files: list[list[Path]]  # the images of each user, in natural order too
    unused: dict[str, list[str]]  # names of what is not used, by what it is

    @property
    def left_out(self) -> str:
        """What is not used, in words; "" where there is no such thing."""
        said = []
        for (thing, where), names in self.unused.items():
            kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in names).most_common()
            tally = some([f"{count:,} {kind}" for kind, count in kinds], 6) + ": " if thing == "file" else ""
            said += [f"{counted(len(names), thing)} {where} ({tally}{some(names)})"] if names else []
        return "; ".join(said)


@uncollected()
def scan(folder: str | Path) -> Scan:
    """Find the users and their images in a folder.

    Hidden entries and what systems leave behind are ignored. A folder without any picture is no user. UserError where
    there is no such folder, no user, a user with pictures only where they are not looked for, or one name twice.
    """
    folder = Path(folder)
    require(os.path.isdir(folder), f"{folder}: no such folder; data.dir is what holds a folder of images per user")
    require_complete(folder)
    entries = _visible(folder)
    for entry in entries:  # otherwise a user would be missing without any notice
        lost = entry.is_symlink() and not os.path.exists(entry)
        require(not lost, f"{entry}: is a link to nowhere; repair or remove it")
    folders = [entry for entry in entries if os.path.isdir(entry)]
    within = {entry: [] if entry.name.casefold() in NO_USERS else _visible(entry) for entry in folders}
    files, rest = {}, []
    for entry, inner in within.items():
        own = [path for path in inner if _has_suffix(path)]
        if own:
            files[entry] = own
            rest += [path for path in inner if not _has_suffix(path)] if len(own) < len(inner) else []
    _require_good_names(folder, files)
    others = [entry for entry in folders if entry not in files]
    elsewhere = [entry for entry in others if any(_has_suffix(path, OTHER) for path in _below(within[entry]))]
    deeper = elsewhere and any(os.path.isdir(entry) for entry in within[elsewhere[0]])
    instead = f"; if the users are in there, give {one_line(str(elsewhere[0]))} as data.dir" if deeper else ""
    called = some([one_line(user.name) for user in elsewhere])
    require(not elsewhere, f"{folder}: no image directly in the folder of {called}; "
            f"put images there ({' '.join(SUFFIXES)}), remove it, or give a folder of links to the others{instead}")
    require(files, f"{folder}: there is no user in it; put each user's images into a folder named after the user, "
            f"as in {folder / 'ID1' / 'image.png'}")
    loose, inner = ([path for path in rest if os.path.isdir(path) == is_folder] for is_folder in (False, True))
    unused = {
        ("file", "of other formats"): loose,
        ("file", "in folders within the users'"): _below(inner),
        ("file", "beside the users' folders"): [entry for entry in entries if entry not in within],
        ("folder", "without images"): others,
    }
    names = {what: [one_line(path.relative_to(folder).as_posix()) for path in paths] for what, paths in unused.items()}
    return Scan([composed(user.name) for user in files], list(files.values()), names)


def _require_good_names(folder: Path, files: dict[Path, list[Path]]) -> None:
    """UserError where a name cannot be written into a text file, stands twice, or is that of a file we write."""
    for path in [*files, *itertools.chain(*files.values())]:
        if CONTROL.search(path.name):
            raise UserError(f"{folder}: rename {path.name!r}; such a name cannot be written into a text file")
    for user in files:
        require(user.name.casefold() not in RESERVED, f"{user}: no user can be called so, since a file beside "
                "generated images is; rename the folder, or give one with a link to it under another name")
    seen: dict[str, str] = {}
    for user in files:  # the output folders of two users would be the same on Windows and macOS
        same = seen.setdefault(composed(user.name).casefold(), user.name)
        require(same == user.name, f"{folder}: users {same!r} and {user.name!r} differ in case only, or in how accents "
                "are stored; rename one")
    for user, own in files.items():
        twice = [name for name, count in Counter(composed(path.name) for path in own).items() if count > 1]
        require(not twice, f"{user}: has {some(twice)} twice, which differ in how accents are stored only; rename one")


def _has_suffix(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    return path.name.lower().endswith(suffixes)


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder in natural order, but for hidden ones and what systems leave behind."""
    try:
        entries = [entry for entry in folder.iterdir() if not _is_litter(entry.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _below(entries: list[Path]) -> list[Path]:
    """The files among the entries, and those in the folders among them, at any depth; links are not followed."""
    found = []
    for entry in (entry for entry in entries if entry.name.casefold() not in NO_USERS):
        found += [entry] if not os.path.isdir(entry) else []
        for place, folders, names in os.walk(entry):
            folders[:] = sorted(name for name in folders if not _is_litter(name) and name.casefold() not in NO_USERS)
            found += [Path(place, name) for name in sorted(names, key=natural_key) if not _is_litter(name)]
    return found
