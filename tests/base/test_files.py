"""A file is whole or absent, and what is no file of tensors is refused and never run."""

import pickle
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.base.files import load_tensors, write_json


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_a_killed_write_has_left_goes_with_the_next_one(tmp_path):
    """It was found by killing trainings: a temporary file stayed in a final model for ever."""
    script = """if True:
        import os, sys, pathlib
        from train.base.files import replacing
        with replacing(pathlib.Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            os._exit(9)
    """
    path = tmp_path / "config.json"
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9
    assert [p.name for p in tmp_path.iterdir()] != []
    write_json(path, {"whole": True})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_damaged_file_of_tensors_loads_or_is_refused(tmp_path):
    """Bytes changed at random and cut off, seeded: UserError, or tensors."""
    rng = random.Random(0)
    path = tmp_path / "x.bin"
    for legacy in (False, True):
        torch.save({"a": torch.randn(3), "n": [1, None]}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(rng.choice([1, 2, 8])):
                content[rng.randrange(len(content))] = rng.randrange(256)
            path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
            with suppress(UserError):
                load_tensors(path)


@pytest.mark.parametrize("value", [[torch.zeros(2)], torch.zeros(2), "text", None])
def test_a_file_that_holds_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"x\.bin: must hold a dictionary of tensors"):
        load_tensors(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello", b'{"a": 1}', pickle.dumps({"a": 1})])
def test_a_file_not_written_by_torch_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*x\.bin: [^\n]+$"):
        load_tensors(tmp_path / "x.bin")
