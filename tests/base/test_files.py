"""A file is whole or absent, and what is no file of tensors is refused and never run."""

import errno
import os
import pickle
import random
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.base.syncing import refuse_to_sync
from train.base.errors import UserError
from train.base.files import load_tensors, replacing, sync_folder, write_json, writing


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


def behind_another() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("the writer failed") from None


def raises(error: Exception):
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (raises(OSError(errno.EIO, "Input/output error")), "Input/output error"),
        (raises(OSError("encoder error -2")), "encoder error -2"),
        (behind_another, "No space left on device"),
        (raises(SafetensorError("Error while serializing: I/O error: File too large (os error 27)")), "File too large"),
        (raises(SafetensorError("cannot\nbe serialized")), "cannot"),
    ],
    ids=["system", "pillow", "torch", "rust", "library"],
)
@pytest.mark.parametrize("write", [writing, replacing])
def test_what_any_library_raises_in_a_write_names_the_file(tmp_path, write, fail, reason):
    with pytest.raises(UserError) as caught, write(tmp_path / "x.bin"):
        fail()
    assert str(caught.value) == f"{tmp_path / 'x.bin'}: cannot be written ({reason})"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [TypeError("a bug"), RuntimeError("CUDA error"), torch.OutOfMemoryError("x")])
def test_a_bug_in_a_write_is_not_taken_for_a_full_disk(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "x"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EIO", "ENOSPC"])
def test_only_a_folder_may_be_one_that_cannot_be_synced(tmp_path, monkeypatch, name):
    number = getattr(errno, name)
    refuse_to_sync(monkeypatch, stat.S_ISDIR, number)
    write_json(tmp_path / "x.json", {})
    if name in ("EIO", "ENOSPC"):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
    refuse_to_sync(monkeypatch, stat.S_ISREG, number)
    with pytest.raises(UserError, match=rf"x\.json: cannot be written \({os.strerror(number)}\)"):
        write_json(tmp_path / "x.json", {})


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
