"""What the README says of the source is so."""

import re
from pathlib import Path

from train import memcheck

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_reading_order_names_every_source_file_once_with_its_lines():
    listed = [(path, int(count)) for path, count in re.findall(r"\]\(([\w/]+\.py)\) \((\d+)\)", README)]
    sources = [path for folder in ("nets", "diffusion", "train") for path in (ROOT / folder).rglob("*.py")]
    there = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources if p.name != "__init__.py"}
    assert sorted(path for path, _ in listed) == sorted(there)
    assert {path: count for path, count in listed if abs(count - there[path]) > 0.1 * there[path] + 3} == {}


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / path).is_file() for path in pictures)


def test_the_account_of_medium_is_what_the_command_prints(capsys):
    memcheck.main(["--config", str(ROOT / "configs" / "medium.yaml"), "--gpu", "P100"])
    assert (ROOT / "docs" / "memory_medium.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_tables_of_what_fits_are_two_of_that_account():
    account = (ROOT / "docs" / "memory_medium.md").read_text(encoding="utf-8").split("\n\n")
    section = README.split("## What fits on 16 GB")[1].split("\n## ")[0]
    tables = [paragraph for paragraph in section.split("\n\n") if paragraph.startswith("|")]
    assert len(tables) == 2
    assert all(table in account for table in tables)
