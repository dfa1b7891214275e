"""A store gives back what was put into it, whatever happened to its files and whoever else uses them."""

import errno
import os
import sys
import threading

import numpy as np
import pytest
import torch

from train.base.errors import UserError
from train.data import store as module
from train.data.store import Store, digest

KEYS = np.array([digest(bytes([i])) for i in range(8)], "V16")


def numbers(i: int) -> np.ndarray:
    return np.full((2, 3), i, np.int32)


def filled(folder, count: int = 5) -> Store:
    """A store in whose first rows are those of the first keys; what was lacking has been made."""
    store = Store(folder, (2, 3), np.int32, [("of", "<i8")])
    with store.held():
        lacking = np.flatnonzero(store.find(KEYS[:count]) < 0)
        places = store.places(len(lacking), "wait")
        for i, at in zip(lacking, places, strict=True):
            put(store, i, at, numbers(i))
    return store


def put(store: Store, i: int, at: int, made: np.ndarray) -> None:
    store.add([(KEYS[i].tobytes(), at, store.write(at, made), (i,))])


def contents(store: Store, count: int = 5) -> torch.Tensor:
    return store.rows(store.find(KEYS[:count]), numbers)[:]


EXPECTED = torch.stack([torch.full((2, 3), i, dtype=torch.int32) for i in range(8)])


def test_rows_are_indexed_as_a_tensor_of_them_would_be(tmp_path):
    store = filled(tmp_path)
    rows, expected = store.rows(store.find(KEYS[[4, 0, 3]]), numbers), EXPECTED[[4, 0, 3]]
    assert (rows.shape, rows.dtype, len(rows)) == (expected.shape, expected.dtype, 3)
    for index in (0, 2, -1, slice(1, 3), torch.tensor([2, 2, 0]), torch.tensor([False, True, True]), torch.tensor(1)):
        assert torch.equal(rows[index], expected[index]), index
    with pytest.raises(IndexError):
        rows[torch.tensor([3])]


def test_what_is_read_from_a_store_can_be_changed_and_it_cannot(tmp_path):
    store = filled(tmp_path)
    rows = store.rows(store.find(KEYS[:5]), numbers)
    for index in (1, slice(None), torch.tensor([1, 2])):
        rows[index].zero_()
    assert torch.equal(rows[:], EXPECTED[:5])


def spoilt(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "empty": b"", "cut": content[:middle], "cut within": content[:-1], "longer": content + b"\0",
        "more": content * 2, "zeros": bytes(len(content)), 
        "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "noise": np.random.default_rng(0).bytes(len(content)), "shifted": content[1:], "ones": b"\xff" * len(content),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["rows.raw", "index"])
def test_spoilt_files_are_never_believed(tmp_path, name):
    """Filled again and read, it is as before; and then it is whole."""
    filled(tmp_path)
    content = {name: (tmp_path / name).read_bytes() for name in ("rows.raw", "index")}
    for what, bad in spoilt(content[name]).items():
        for file, whole in content.items():
            (tmp_path / file).write_bytes(bad if file == name else whole)
        assert torch.equal(contents(filled(tmp_path)), EXPECTED[:5]), what
        assert torch.equal(contents(filled(tmp_path, 7), 7), EXPECTED[:7]), what
        store = filled(tmp_path, 7)
        assert torch.equal(store.rows(store.find(KEYS[:7]), None)[:], EXPECTED[:7]), what


def test_damage_is_said_once_and_what_was_only_cut_off_is_none(tmp_path, capsys):
    filled(tmp_path)
    index = (tmp_path / "index").read_bytes()
    (tmp_path / "index").write_bytes(index[:-7])  # as of a process that was killed
    filled(tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / "index").write_bytes(bytes(1) + index[1:])
    contents(filled(tmp_path))
    assert capsys.readouterr().err == f"{tmp_path}: is damaged; 1 of 5 rows are made anew\n"
    with open(tmp_path / "rows.raw", "r+b") as file:
        file.write(b"damage" * 9)
    contents(filled(tmp_path))
    assert capsys.readouterr().err == f"{tmp_path}: is damaged; rows of it are made anew where they are read\n"


def test_an_index_that_tells_of_more_rows_than_there_are_is_not_believed(tmp_path):
    store = filled(tmp_path)
    os.truncate(tmp_path / "rows.raw", 3 * store.row_bytes + 1)
    with store.held():
        assert store.find(KEYS[:5]).tolist() == [0, 1, 2, -1, -1]


def test_of_two_records_with_one_key_the_last_one_holds(tmp_path):
    store = filled(tmp_path)
    with store.held():
        (at,) = store.places(1, "wait")
        put(store, 2, at, numbers(9))
    assert contents(store)[:, 0, 0].tolist() == [0, 1, 9, 3, 4]
    assert len(store.records) == 6


def test_keys_of_one_first_half_are_told_apart(tmp_path, monkeypatch):
    halves = [digest(bytes([i]))[:8] for i in range(3)]
    keys = [halves[0] + halves[at] for at in (0, 1, 2)] + [halves[1] + bytes(8), halves[0] + halves[1]]
    monkeypatch.setattr(sys.modules[__name__], "KEYS", np.array(keys, "V16"))
    store = Store(tmp_path, (2, 3), np.int32, [("of", "<i8")])
    with store.held():
        for i in range(5):
            put(store, i, i, numbers(i))
    asked = [*keys[:4], halves[0] + bytes(8), halves[2] + bytes(8)]
    assert store.find(np.array(asked, "V16")).tolist() == [0, 4, 2, 3, -1, -1]


def test_who_reads_is_not_disturbed_by_who_adds_or_begins_anew(tmp_path):
    store = filled(tmp_path)
    rows = store.rows(store.find(KEYS[:5]), None)
    filled(tmp_path, 8)
    other = Store(tmp_path, (2, 3), np.int32, [("of", "<i8")])
    with other.held():
        other.begin_anew()
        put(other, 0, 0, numbers(7))
    assert torch.equal(rows[:], EXPECTED[:5])


def test_two_processes_do_not_add_at_once(tmp_path, capsys):
    """The second waits, says so, and then finds what the first has added."""
    store, found = filled(tmp_path, 0), []
    with store.held():
        waiting = threading.Thread(target=lambda: found.append(contents(filled(tmp_path))))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (at,) = store.places(1, "wait")
        put(store, 0, at, numbers(0))
    waiting.join()
    assert torch.equal(found[0], EXPECTED[:5])
    assert (tmp_path / "rows.raw").stat().st_size == 5 * store.row_bytes
    assert "another process adds to it; waiting for it" in capsys.readouterr().err


def test_what_an_error_cuts_off_is_kept_up_to_there(tmp_path):
    store = Store(tmp_path, (2, 3), np.int32, [("of", "<i8")])

    def interrupted() -> None:
        with store.held():
            for i in range(3):
                put(store, i, i, numbers(i))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with store.held():
        assert store.find(KEYS).tolist() == [0, 1, 2, -1, -1, -1, -1, -1]


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    store = filled(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"1,000,000 rows of 0.0 MiB need 22.9 MiB, and 0.0 MiB are free; take another"):
        store.places(10**6, "take another")


def test_a_full_disk_is_told_and_keeps_nobody_from_reading(tmp_path, monkeypatch):
    store = filled(tmp_path)
    (tmp_path / "rows.raw").write_bytes(bytes(5 * store.row_bytes))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "pwrite", full)
    for _ in range(2):
        assert torch.equal(contents(store), EXPECTED[:5])
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .No space left"):
        filled(tmp_path, 6)
