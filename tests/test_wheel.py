"""What is installed is whole: a wheel of the project, unpacked, runs without the folder that it was built in."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = {"runs", "data", "build", "dist"}  # beside the sources, where there are any
PACKAGES = {"nets", "diffusion", "train", "configs"}
IMPORTS = """
import sys
import train.ldm, train.memory.step
ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("nets", "diffusion", "train")}
print(*(module.__file__ for module in ours.values()), sep="\\n")
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel's content. It is built of a copy, since setuptools leaves folders of its own where it builds."""
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "unpacked"))
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in NOT_SOURCE:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, source)
    for leftover in source.glob("*.egg-info"):
        shutil.rmtree(leftover)
    # Without isolation nothing is fetched: the extra "test" brings setuptools.
    pip = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source)]
    done = subprocess.run([sys.executable, *pip], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(unpacked: Path, elsewhere: Path, *arguments: str) -> str:
    """What Python prints that has the wheel, and the packages of this environment but for the project itself.

    -S: no .pth file is read, so that an editable install cannot answer for what the wheel lacks.
    """
    there = [path for path in sys.path if path and not (Path(path) / "train").is_dir()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(unpacked), *there])}
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_the_packages_and_configs_and_no_more(unpacked):
    at_top = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert at_top == PACKAGES
    patterns = [("configs", "*.yaml"), ("train", "*.css"), *((package, "*.py") for package in PACKAGES - {"configs"})]
    wanted = {path.relative_to(ROOT) for package, pattern in patterns for path in (ROOT / package).rglob(pattern)}
    found = {path.relative_to(unpacked) for name in PACKAGES for path in (unpacked / name).rglob("*") if path.is_file()}
    assert found == wanted


def test_every_module_that_is_imported_is_the_wheels(unpacked, tmp_path):
    files = python(unpacked, tmp_path, "-c", IMPORTS).split()
    assert str(unpacked / "train/memory/step.py") in files
    assert [file for file in files if not Path(file).is_relative_to(unpacked)] == []


def test_a_command_of_the_wheel_explains_itself(unpacked, tmp_path):
    assert "--measure RECORD.md" in python(unpacked, tmp_path, "-m", "train.memcheck", "--help")


@pytest.mark.parametrize("given", [True, False])
def test_a_command_of_the_wheel_finds_its_configs(unpacked, tmp_path, given):
    """The one that is given, and, where none is, its own: medium.yaml."""
    flags = ["--config", str(unpacked / "configs/demo.yaml")] if given else ["--gpu", "P100"]
    printed = python(unpacked, tmp_path, "-m", "train.memcheck", *flags)
    assert ("139,680,132" in printed) != given
    assert "unet" in printed.lower()
