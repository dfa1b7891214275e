"""What may import what: the laws of DESIGN.md's layout, read off the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"nets", "diffusion", "train", "tests"}
RUNTIME = {"torch", "numpy", "PIL", "yaml", "tqdm"}
OPTIONAL = {"safetensors", "torch.utils.tensorboard", "diffusers"}
COMPARES = {("train/bench.py", "diffusers")}  # the one file whose job is the comparison


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} is gone"
    return found


def imports(tree: ast.AST) -> set[str]:
    """The dotted names of the modules that a piece of source imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names.add(node.module)
    return names


def imported(path: Path) -> set[str]:
    """The same of a file: our own packages and what is not in the standard library."""
    names = imports(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("nets", {"nets", "torch"}),
        ("diffusion", {"diffusion", "torch", "numpy"}),
        ("train", {"nets", "diffusion", "train"} | RUNTIME | {"safetensors"}),
    ],
)
def test_a_package_imports_only_what_its_layer_may(package, allowed):
    wrong = {(str(path.relative_to(ROOT)), name) for path in sources(package) for name in imported(path)}
    wrong = {(path, name) for path, name in wrong if name.split(".")[0] not in allowed}
    assert not wrong - COMPARES


def test_optional_packages_are_only_imported_where_their_absence_is_handled():
    for package in ("nets", "diffusion", "train"):
        for path in sources(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            guarded = {
                name
                for node in ast.walk(tree)
                if isinstance(node, ast.Try)
                and any(isinstance(h.type, ast.Name) and h.type.id == "ImportError" for h in node.handlers)
                for name in imports(node)
            }
            needed = {n for n in imports(tree) for o in OPTIONAL if n == o or n.startswith(f"{o}.")}
            assert needed <= guarded, path


def test_every_file_of_the_packages_is_one_that_the_import_law_has_seen():
    """No source hides in a folder that the laws above do not look at."""
    at_top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    with_source = {name for name in at_top if any((ROOT / name).glob("*.py"))}
    assert with_source <= OWN


def test_reading_the_source_tells_an_import_wherever_it_stands():
    tree = ast.parse("import a.b\ndef f():\n    from c.d import e\ntry:\n    import g\nfinally:\n    g = 0\n")
    assert imports(tree) == {"a.b", "c.d", "g"}
