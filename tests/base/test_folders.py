"""A folder that is read as one thing is the old one or the new one, wherever a process is killed; or there is none."""

import errno
import itertools
import os
from pathlib import Path

import pytest

from train.base.errors import UserError
from train.base.folders import INCOMPLETE, filling, read_as_one, replacing_folder, require_complete

OLD, NEW = {"config": "old", "deep/weights": "old"}, {"config": "new", "deep/weights": "new"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def replace(folder: Path, files: dict[str, str] = NEW, stale: str = "weights*") -> None:
    with replacing_folder(folder, stale) as new:
        write(new, files)


def killed(folder: Path, rename: int) -> bool:
    """Replace the folder in a process that dies before its rename of this number; whether it came so far."""
    child = os.fork()
    if child == 0:
        replaced, calls = os.replace, itertools.count()
        os.replace = lambda *paths: os._exit(9) if next(calls) == rename else replaced(*paths)
        try:
            replace(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_at_any_rename_leaves_one_whole_folder_or_none(tmp_path):
    folder, own = tmp_path / "model", {"notes.txt": "mine", "deep/my notes": "mine"}
    seen = []
    for rename in range(20):
        write(folder, OLD | own)
        went_off = killed(folder, rename)
        there = contents(folder)
        assert there in ({}, OLD | own, *({**NEW, **part} for part in parts(own)))
        seen.append(there)
        replace(folder)
        assert contents(folder) == NEW | own  # nothing of the user's is lost, wherever it was by then
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        if not went_off:
            break
    assert {} in seen
    assert OLD | own in seen
    assert not went_off


def parts(files: dict[str, str]) -> list[dict[str, str]]:
    return [{}, *({name: text} for name, text in files.items()), files]


def test_what_is_stale_does_not_stay_beside_the_new(tmp_path):
    write(tmp_path / "model", OLD | {"deep/weights.other": "old", "deep/.config.tmp": "left"})
    replace(tmp_path / "model")
    assert contents(tmp_path / "model") == NEW


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "there", OLD)
    (tmp_path / "link").symlink_to("there")
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "there") == NEW


@pytest.mark.parametrize("rename", [0, 1])
def test_a_replacement_that_fails_leaves_the_old_folder_and_no_other(tmp_path, monkeypatch, rename):
    write(tmp_path / "model", OLD)
    replaced, calls = os.replace, itertools.count()

    def full(*paths):
        if next(calls) == rename:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"model: cannot be written \(No space left on device\)$"):
        replace(tmp_path / "model")
    assert contents(tmp_path) == {f"model/{name}": text for name, text in OLD.items()}


def test_a_folder_replaced_while_it_is_read_is_found_out(tmp_path):
    write(tmp_path / "model", OLD)
    with read_as_one(tmp_path / "model"):
        pass
    with pytest.raises(UserError, match="model: was replaced while it was read"), read_as_one(tmp_path / "model"):
        replace(tmp_path / "model")


def test_a_folder_is_incomplete_until_all_that_was_asked_for_is_there(tmp_path):
    def fill(asked: str, made: str) -> None:
        with filling(tmp_path, [tmp_path / "user" / name for name in asked]):
            with pytest.raises(UserError, match="is not complete"):
                require_complete(tmp_path)
            write(tmp_path, {f"user/{name}": "" for name in made})
            if asked != made:
                raise ZeroDivisionError

    require_complete(tmp_path)
    fill("ab", "ab")
    require_complete(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fill("abcde", "abc")
    fill("a", "a")  # a smaller wish does not make the greater one come true
    with pytest.raises(UserError, match="is not complete"):
        require_complete(tmp_path)
    fill("cde", "cde")
    require_complete(tmp_path)
    assert not (tmp_path / INCOMPLETE).exists()
