"""The users and their images in a folder; what else is in it, is not used, and that is said.

    data/ID1/walk1_000.png      the folder's name is the user's name
    data/ID1/walk1_001.png
    data/ID2/...
"""

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
    "$recycle.bin", "system volume information", "found.000", "__pycache__", "network trash folder", "temporary items",
    "thevolumesettingsfolder",
)  # fmt: skip
RESERVED = (  # files beside the folders of users in what commands write
    "augmented.json", "evaluation.json", "generated_and_real.png", "grid.png", "left_out.csv", "manifest.csv",
    "report.html", "settings.json",
)  # fmt: skip
MOST_BELOW = 10_000  # files that are looked at in a folder's folders: it may be a whole disk
OTHER = (*SUFFIXES, ".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".mat", ".npy", ".npz",
         ".pdf", ".pfm", ".psd", ".raw", ".svg", ".tga")  # fmt: skip
"""Of files that may well be somebody's pictures, whether they are read here or not."""
DIGITS = re.compile("([0-9]+)")
ALL_ZEROS = str.maketrans("123456789", "0" * 9)


def natural_key(name: str) -> tuple:
    """Sort key for natural order: `ID2` before `ID10`; case decides only between otherwise equal names."""
    name = composed(name)
    parts = DIGITS.split(name.casefold())  # text and digits in turn, so keys always compare
    parts[1::2] = map(int, parts[1::2])
    return parts, name


@dataclass(frozen=True)
class Scan:
    """What a data folder holds. Text, and no Path of each file: of 300,000 those alone take seconds."""

    folder: str
    users: list[str]  # names, in natural order
    places: list[str]  # the names of their folders, as the disk has them
    files: list[list[str]]  # the names of each user's images, as the disk has them, in natural order too
    unused: dict[str, list[str]]  # names of what is not used, by what it is

    @property
    def paths(self) -> list[str]:
        """Where all the images are, user by user."""
        return [f"{self.folder}/{place}/{name}" for place, own in zip(self.places, self.files, strict=True)
                for name in own]  # fmt: skip

    @property
    def left_out(self) -> str:
        """What is not used, in words; "" where there is no such thing."""
        said = []
        for (thing, where), names in self.unused.items():
            kinds = Counter(Path(name).suffix.lower() or "without a suffix" for name in names).most_common()
            tally = some([f"{count:,} {kind}" for kind, count in kinds], 6) + ": " if thing == "file" else ""
            at_least = "at least " if len(names) == MOST_BELOW else ""
            said += [f"{at_least}{counted(len(names), thing)} {where} ({tally}{some(names)})"] if names else []
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
        lost = os.path.islink(folder / entry) and not os.path.exists(folder / entry)
        require(not lost, f"{folder / entry}: is a link to nowhere; repair or remove it")
    folders = [entry for entry in entries if os.path.isdir(folder / entry)]
    within = {entry: [] if entry.casefold() in NO_USERS else _visible(folder / entry) for entry in folders}
    files, rest = {}, []
    for entry, inner in within.items():
        own = [name for name in inner if _has_suffix(name)]
        if own:
            files[entry] = own
            rest += [folder / entry / name for name in inner if not _has_suffix(name)] if len(own) < len(inner) else []
    _require_good_names(folder, files)
    others = [entry for entry in folders if entry not in files]
    inside = {entry: [folder / entry / name for name in within[entry]] for entry in others}
    elsewhere = [entry for entry in others if any(_has_suffix(path.name, OTHER) for path in _below(inside[entry]))]
    deeper = elsewhere and any(os.path.isdir(path) for path in inside[elsewhere[0]])
    instead = f"; if the users are in there, give {one_line(str(folder / elsewhere[0]))} as data.dir" if deeper else ""
    called = some([one_line(user) for user in elsewhere])
    require(not elsewhere, f"{folder}: no image directly in the folder of {called}; "
            f"put images there ({' '.join(SUFFIXES)}), remove it, or give a folder of links to the others{instead}")
    require(files, f"{folder}: there is no user in it; put each user's images into a folder named after the user, "
            f"as in {folder / 'ID1' / 'image.png'}")
    loose, inner = ([path for path in rest if os.path.isdir(path) == is_folder] for is_folder in (False, True))
    unused = {
        ("file", "of other formats"): loose,
        ("file", "in folders within the users'"): _below(inner),
        ("file", "beside the users' folders"): [folder / entry for entry in entries if entry not in within],
        ("folder", "without images"): [folder / entry for entry in others],
    }
    names = {what: [one_line(path.relative_to(folder).as_posix()) for path in paths] for what, paths in unused.items()}
    return Scan(str(folder), [composed(user) for user in files], list(files), list(files.values()), names)


def _require_good_names(folder: Path, files: dict[str, list[str]]) -> None:
    """UserError where a name cannot be written into a text file, stands twice, or is that of a file we write."""
    for user, own in files.items():
        if CONTROL.search(user + "".join(own)):  # rarely, so that only then all are looked at one by one
            bad = next(name for name in (user, *own) if CONTROL.search(name))
            raise UserError(f"{folder}: rename {bad!r}; such a name cannot be written into a text file")
        require(user.casefold() not in RESERVED, f"{folder / user}: no user can be called so, since a file beside "
                "generated images is; rename the folder, or give one with a link to it under another name")
    seen: dict[str, str] = {}
    for user in files:  # the output folders of two users would be the same on Windows and macOS
        same = seen.setdefault(composed(user).casefold(), user)
        require(same == user, f"{folder}: users {same!r} and {user!r} differ in case only, or in how accents are "
                "stored; rename one")
    for user, own in files.items():
        if not "".join(own).isascii():
            twice = [name for name, count in Counter(map(composed, own)).items() if count > 1]
            require(not twice, f"{folder / user}: has {some(twice)} twice, which differ in how accents are stored "
                    "only; rename one")


def _has_suffix(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    return name.lower().endswith(suffixes)


def _visible(folder: Path) -> list[str]:
    """The names in a folder in natural order, but for hidden ones and what systems leave behind."""
    try:
        names = [name for name in os.listdir(folder) if not _is_litter(name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    return in_natural_order(names)


def in_natural_order(names: list[str]) -> list[str]:
    """Sorted by `natural_key`. Where they differ in digits alone, as many in each, plain text has the same order."""
    alike = len({name.translate(ALL_ZEROS) for name in names}) == 1
    return sorted(names) if alike else sorted(names, key=natural_key)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _below(entries: list[Path]) -> list[Path]:
    """The files among the entries, and those in the folders among them, at any depth; links are not followed.

    No more than MOST_BELOW of them, and after as many folders none any more.
    """
    found, places = [], 0
    for entry in (entry for entry in entries if entry.name.casefold() not in NO_USERS):
        found += [entry] if not os.path.isdir(entry) else []
        for place, folders, names in os.walk(entry):
            folders[:] = sorted(name for name in folders if not _is_litter(name) and name.casefold() not in NO_USERS)
            found += [Path(place, name) for name in sorted(names, key=natural_key) if not _is_litter(name)]
            places += 1
            if max(len(found), places) >= MOST_BELOW:
                return found[:MOST_BELOW]
    return found
