"""What the README says of the source is so."""

import re
from pathlib import Path

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
