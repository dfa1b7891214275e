"""What may import what, read off the source: packages, the rooms of train/ in their order, then its commands."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"nets", "diffusion", "train", "tests"}
RUNTIME = {"torch", "numpy", "PIL", "yaml", "tqdm"}
OPTIONAL = {"safetensors", "torch.utils.tensorboard", "diffusers"}
ROOMS = ("base", "config", "data", "runs", "engine", "stages", "judge", "memory", "speed", "api")
"""The folders of train/: each imports itself and those before it."""
APART = {"memory": {"judge"}, "speed": {"judge", "memory"}}  # which know nothing of each other


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} is gone"
    return found


def imports(tree: ast.AST) -> set[str]:
    """The dotted names that a piece of source imports: of `from a import b` both a and a.b, which may be a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported(path: Path) -> set[str]:
    """The same of a file: our own packages and what is not in the standard library."""
    names = imports(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def room_of(name: str) -> str | None:
    """The room of a module `train.ROOM.X`, "" for a command `train.X`; None for what is not of train."""
    package, *rest = name.split(".")
    if package != "train" or not rest:
        return None
    return rest[0] if rest[0] in ROOMS else ""


def commands() -> set[str]:
    return {f"train.{path.stem}" for path in (ROOT / "train").glob("*.py") if path.stem != "__init__"}


def breaches(room: str, names: set[str]) -> set[str]:
    """Those of the names that a file of this room must not import; of "", the commands' files."""
    if room == "":
        return {name for name in names if room_of(name) == ""}
    allowed = {None, *ROOMS[: ROOMS.index(room) + 1]} - APART.get(room, set())
    return {name for name in names if room_of(name) not in allowed}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("nets", {"nets", "torch"}),
        ("diffusion", {"diffusion", "torch", "numpy"}),
        ("train", {"nets", "diffusion", "train"} | RUNTIME),
    ],
)
def test_a_package_imports_only_what_its_layer_may(package, allowed):
    wrong = {(str(path.relative_to(ROOT)), name) for path in sources(package) for name in imported(path)}
    wrong = {(path, name) for path, name in wrong if name.split(".")[0] not in allowed}
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_itself_and_earlier_rooms_only(room):
    found = {str(path.relative_to(ROOT)): breaches(room, imported(path)) for path in sources(f"train/{room}")}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_command_is_imported_by_another():
    found = {name: breaches("", imported(ROOT / f"{name.replace('.', '/')}.py")) for name in commands()}
    assert {name: others for name, others in found.items() if others} == {}


def test_only_commands_and_the_api_import_the_memory_account():
    users = {path for path in sources("train") if any(room_of(name) == "memory" for name in imported(path))}
    outside = users - set(sources("train/memory"))
    assert outside
    assert {path.parent for path in outside} == {ROOT / "train", ROOT / "train/api"}


def test_train_consists_of_its_rooms_and_of_commands():
    """No source hides in a folder that has no place in the order, and each file beside the rooms can be run."""
    folders = {path.parent.relative_to(ROOT / "train").as_posix() for path in sources("train")}
    assert folders == {".", *ROOMS}
    for path in (ROOT / f"{name.replace('.', '/')}.py" for name in commands()):
        assert path.read_text(encoding="utf-8").endswith('\nif __name__ == "__main__":\n    cli.run(main)\n'), path


@pytest.mark.parametrize("package", ["nets", "diffusion", "train", *(f"train/{room}" for room in ROOMS)])
def test_a_package_or_room_has_an_init_that_imports_nothing(package):
    """But for the api's, which gives Python programs one place to import from: its own names, and the errors."""
    found = imports(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    own = "train.base.errors", *(f"train.api.{path.stem}" for path in sources("train/api"))
    allowed = own if package == "train/api" else ()
    assert {name for name in found if not name.startswith(allowed)} == set()


def test_optional_packages_are_imported_by_the_function_for_them():
    """An import statement would fail where a package is there but broken (train/base/optional.py)."""
    for path in (path for package in ("nets", "diffusion", "train") for path in sources(package)):
        names = imports(ast.parse(path.read_text(encoding="utf-8")))
        assert not {n for n in names for o in OPTIONAL if n == o or n.startswith(f"{o}.")}, path


def test_every_folder_with_source_is_checked_for_its_imports():
    """No source hides in a folder that the laws above do not look at."""
    at_top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    with_source = {name for name in at_top if any((ROOT / name).glob("*.py"))}
    assert with_source <= OWN


def test_reading_the_source_finds_an_import_anywhere_in_it():
    tree = ast.parse("import a.b\ndef f():\n    from c.d import e\ntry:\n    import g\nfinally:\n    g = 0\n")
    assert imports(tree) == {"a.b", "c.d", "c.d.e", "g"}


def test_the_api_neither_reads_a_command_line_nor_ends_the_process():
    for path in sources("train/api"):
        names = imports(ast.parse(path.read_text(encoding="utf-8")))
        assert not names & {"argparse", "sys", "train.config.cli"}, path


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("data", "def f():\n    import train.engine.step", {"train.engine.step"}),
        ("data", "from train import memory, base", {"train.memory"}),
        ("memory", "from train import vae\nimport train.stages.vae", {"train.vae"}),
        ("engine", "import train.memory", {"train.memory"}),
        ("stages", "import train.judge.arms", {"train.judge.arms"}),
        ("memory", "import train.judge.arms, train.stages.vae", {"train.judge.arms"}),
        ("engine", "import torch, nets.vae, train.base.files, train.engine.step", set()),
        ("", "from train import sample\nfrom train.memory import fit", {"train.sample"}),
    ],
)  # fmt: skip
def test_a_breach_of_the_order_of_rooms_is_seen(room, source, wrong):
    assert breaches(room, imports(ast.parse(source))) == wrong
