"""`users.json`: the folder names of a model's users, in the order of their indices."""

from collections import Counter
from pathlib import Path

from train.base.errors import CONTROL, require
from train.base.files import read_json, write_json
from train.base.names import composed

USERS = "users.json"


def save_users(names: list[str], folder: Path) -> None:
    write_json(folder / USERS, {"users": names})


def load_users(folder: Path) -> list[str]:
    path = folder / USERS
    names = read_json(path).get("users")
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(listed, f"{path}: 'users' must be a list of names")
    require(names, f"{path}: names no user")
    names = [composed(name) for name in names]
    counts = Counter(names)
    for name in names:  # the folders into which a user's images are written
        is_a_name = Path(name).name == name and name not in ("", ".", "..") and not CONTROL.search(name)
        require(is_a_name, f"{path}: the user {name!r} is not the name of a folder")
        require(counts[name] == 1, f"{path}: the user {name!r} stands there twice")
    return names
