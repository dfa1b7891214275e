"""`python -m train.simulate` writes a whole data set or nothing, and never over other files."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.killing import start
from train import simulate
from train.base.errors import UserError
from train.data import walkers
from train.data.dataset import scan
from train.runs.folder import locked


def test_file_names_carry_the_recording(tmp_path):
    flags = ["--users", "2", "--images-per-user", "12", "--resolution", "32", "--output-dir"]
    simulate.main([*flags, str(tmp_path / "new" / "data")])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["data"]  # no temporary folder is left
    for user in ("ID1", "ID2"):
        names = sorted(p.name for p in (tmp_path / "new" / "data" / user).iterdir())
        assert names == [f"rec01_{k:02d}.png" for k in range(10)] + ["rec02_00.png", "rec02_01.png"]
        assert {re.match(r"^(rec\d+)_", name)[1] for name in names} == {"rec01", "rec02"}
    with Image.open(tmp_path / "new/data/ID2/rec02_01.png") as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
        np.testing.assert_array_equal(np.asarray(image), list(walkers.pictures_of_recording(0, 2, 2, 32))[1])


def test_another_condition_has_the_same_names_and_other_pictures(tmp_path):
    few = ["--users", "2", "--images-per-user", "2", "--resolution", "32"]
    made = {}
    for condition in ([], ["--condition", "plain"], *(["--condition", name] for name in walkers.CONDITIONS)):
        folder = tmp_path / f"data{len(made)}"
        simulate.main([*few, "--output_dir", str(folder), *condition])
        made[folder] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
    plain, again, *conditions = made.values()
    assert plain == again == conditions[0]
    assert all(other.keys() == plain.keys() for other in conditions)
    pictures = [picture for other in conditions for picture in other.values()]
    assert len(set(pictures)) == len(pictures) == 4 * len(plain)
    with Image.open(tmp_path / "data3/ID2/rec01_01.png") as image:
        carrying = walkers.pictures_of_recording(0, 2, 1, 32, walkers.CONDITIONS["carrying"])
        np.testing.assert_array_equal(np.asarray(image), list(carrying)[1])


def test_a_folder_that_is_not_empty_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        simulate.main(["--output_dir", str(tmp_path), "--users", "1", "--images_per_user", "1"])
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("notes.txt", "mine")]


def test_hidden_files_stay_in_the_folder_that_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.DS_Store").write_text("finder")
    (tmp_path / "link").symlink_to("data")
    few = ["--users", "1", "--images_per_user", "1", "--resolution", "8"]
    simulate.main(["--output_dir", str(tmp_path / "link"), *few])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "link"]
    assert (tmp_path / "data/.DS_Store").read_text() == "finder"
    assert (tmp_path / "data/ID1/rec01_00.png").is_file()


FEW = ["--users", "2", "--images_per_user", "1", "--resolution", "8"]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_that_is_a_mount_point_is_filled_where_it_is(tmp_path, monkeypatch):
    """The system refuses to replace it."""
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount/.mine").write_text("mine")
    whole = os.rename, os.replace

    def busy(rename):
        def refuse(old, new, **options):
            if tmp_path / "mount" in (Path(old), Path(new)):
                raise OSError(errno.EBUSY, "Device or resource busy")
            rename(old, new, **options)

        return refuse

    for name, rename in zip(("rename", "replace"), whole, strict=True):
        monkeypatch.setattr(os, name, busy(rename))
    simulate.main([*FEW, "--output_dir", str(tmp_path / "mount")])
    assert files(tmp_path) == ["mount/.mine", "mount/ID1/rec01_00.png", "mount/ID2/rec01_00.png"]


@pytest.mark.parametrize("there", [False, True])
def test_two_at_once_do_not_touch_each_others_pictures(tmp_path, there):
    output = tmp_path / "data"
    if there:
        output.mkdir()
    part = output / ".incomplete" if there else tmp_path / ".data.part"
    with locked(part):  # by the first
        (part / "ID1").mkdir()
        (part / "ID1/rec01_00.png").write_bytes(b"half")
        before = files(tmp_path)
        with pytest.raises(UserError, match="another process is simulating in it; wait for it"):
            simulate.main([*FEW, "--output_dir", str(output)])
        assert files(tmp_path) == before
    simulate.main([*FEW, "--output_dir", str(output)])  # the first was killed
    assert files(tmp_path) == ["data/ID1/rec01_00.png", "data/ID2/rec01_00.png"]


def test_a_folder_that_was_filled_in_part_is_refused_and_filled(tmp_path):
    """Killed before each of the last changes: both users' folders move, and the mark goes with what is left."""
    (tmp_path / "whole").mkdir()
    whole = start("simulate", [*FEW, "--output_dir", "whole"], tmp_path)
    whole.finish()
    refused = []
    for change in range(len(whole.changes) - 4, len(whole.changes) - 1):
        output = tmp_path / f"data{change}"
        output.mkdir()
        arguments = [*FEW, "--output_dir", str(output)]
        assert start("simulate", arguments, tmp_path, kill_before=change).was_killed
        refused.append((output / ".incomplete").exists())
        if refused[-1]:
            with pytest.raises(UserError, match="is not complete"):
                scan(output)
            simulate.main(arguments)
        assert [name for name in files(output) if name[0] != "."] == ["ID1/rec01_00.png", "ID2/rec01_00.png"]
    assert refused == [True, True, False]


def test_a_move_that_ends_in_an_error_is_taken_back(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    whole = Path.rename

    def fail(old, new):
        if old.name == "ID2":
            raise KeyboardInterrupt
        return whole(old, new)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        simulate.main([*FEW, "--output_dir", str(tmp_path / "data")])
    assert list((tmp_path / "data").iterdir()) == []


def test_a_full_disk_is_answered_with_the_name_of_the_folder(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"data: cannot be written \(No space left on device\)"):
        simulate.main(["--output_dir", str(tmp_path / "data"), "--users", "1", "--images_per_user", "1"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_dies_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(walkers, "picture", fail)
    with pytest.raises(KeyboardInterrupt):
        simulate.main(["--output_dir", str(tmp_path / "data"), "--users", "1", "--images_per_user", "1"])
    assert list(tmp_path.iterdir()) == []
