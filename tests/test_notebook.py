"""docs/notebook.ipynb, from its top to its bottom on a few small images, without Jupyter."""

import importlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.tiny import PATH, make_images
from train.memory import report

ROOT = Path(__file__).parent.parent
CELLS = [
    cell | {"source": "".join(cell["source"])}
    for cell in json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
SHELL = re.compile(r"^( *)!python -m train\.(\w+) (.*)$", re.MULTILINE)  # with {names} of the notebook in it


def call(command: str, arguments: str) -> None:
    importlib.import_module(f"train.{command}").main(shlex.split(arguments))


@pytest.mark.usefixtures("short_judgement")
def test_the_notebook_goes_from_a_folder_to_the_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(report, "levers", lambda scenario: [])  # what would save memory takes the most time of all
    (settings,) = (number for number, cell in enumerate(CELLS) if "parameters" in cell["metadata"].get("tags", ()))
    names = {"call": call}
    smaller = {
        "DATA": str(make_images(tmp_path / "data")), "OUT": str(tmp_path / "out"), "CONFIG": str(PATH), "CHANGES": {},
        "RECORDING": None, "PER_USER": 2,
    }  # fmt: skip
    for number, cell in enumerate(CELLS):
        source = SHELL.sub(r'\1call("\2", f"\3")', cell["source"])
        exec(compile(source, f"docs/notebook.ipynb, code cell {number + 1}", "exec"), names)
        if number == settings:
            assert smaller.keys() == {name for name in names if name.isupper()}
            names |= smaller
    said = capsys.readouterr().out
    assert "ID1: 2 generated\nID1: 6 real\n" in said
    assert (tmp_path / "out/augmented.zip").is_file()
    assert len(os.listdir(tmp_path / "out/ldm/augmented")) == 1


def test_what_the_notebook_shows_was_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = [output["output_type"] for cell in CELLS for output in cell["outputs"]]
    assert "error" not in kinds
    held = [kind for cell in CELLS for output in cell["outputs"] for kind in output.get("data", ())]
    assert sum(kind.startswith("image/") for kind in held) == 4
