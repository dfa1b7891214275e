"""`users.json`: the folder names of a model's users, in the order of their indices."""

from collections import Counter
from pathlib import Path

from train.base.errors import CONTROL, require
from train.base.files import read_names, write_json
from train.base.names import composed

USERS = "users.json"


def save_users(names: list[str], folder: Path) -> None:
    write_json(folder / USERS, {"users": names})


def load_users(folder: Path) -> list[str]:
    path = folder / USERS
    names = [composed(name) for name in read_names(path, "users")]
    require(names, f"{path}: names no user")
    counts = Counter(names)
    for name in names:  # the folders into which a user's images are written
        is_a_name = Path(name).name == name and name not in ("", ".", "..") and not CONTROL.search(name)
        require(is_a_name, f"{path}: the user {name!r} is not the name of a folder")
        require(counts[name] == 1, f"{path}: the user {name!r} stands there twice")
    return names
