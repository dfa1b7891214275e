"""What the README says of the source is so."""

import re
from pathlib import Path

import pytest

from train import memcheck

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = [path for package in ("nets", "diffusion", "train") for path in (ROOT / package).rglob("*.py")]
FOLDERS = sorted({path.parent.relative_to(ROOT).as_posix() for path in SOURCES})
LINKED = re.compile(r"\]\(([^)\s#]+)[^)]*\)")  # [text](path), also of a picture


def section(title: str) -> str:
    """The text below a heading of the README, up to the next of its rank."""
    below = README.partition(f"\n## {title}\n")[2]
    assert below, f"the README has no section {title!r}"
    return below.partition("\n## ")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_reading_order_names_every_folder_of_sources(folder):
    order = section("Reading the source")
    named = {*LINKED.findall(order), *re.findall(r"`([^`\n]+)`", order)}
    assert {folder, f"{folder}/", f"{folder}/*.py"} & named


def test_the_reading_order_names_no_source_that_is_gone():
    order = section("Reading the source")
    paths = re.findall(r"[\[(`]((?:nets|diffusion|train|tests|configs|docs)/[\w/.]*)[\])`]", order)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_picture_and_file_that_is_linked_is_there():
    linked = [path for path in LINKED.findall(README) if "://" not in path]
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert set(pictures) <= set(linked)
    assert [path for path in linked if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("preset", "stages"), [("medium", ["ldm"]), ("texture", ["vae", "ldm"])])
def test_the_account_of_a_preset_is_what_the_command_prints(preset, stages, capsys):
    for stage in stages:
        memcheck.main(["--config", str(ROOT / "configs" / f"{preset}.yaml"), "--gpu", "P100", "--stage", stage])
    assert (ROOT / "docs" / f"memory_{preset}.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_tables_of_what_fits_are_two_of_that_account():
    account = (ROOT / "docs" / "memory_medium.md").read_text(encoding="utf-8").split("\n\n")
    tables = [paragraph for paragraph in section("What fits on 16 GB").split("\n\n") if paragraph.startswith("|")]
    assert len(tables) == 2
    assert all(table in account for table in tables)
