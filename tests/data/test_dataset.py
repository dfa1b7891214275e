"""Laws of reading folders of images. Every picture is made here, with known pixels."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from train.base.errors import UserError
from train.base.names import located
from train.config.sections import DataConfig
from train.data import folders
from train.data.dataset import draw_flips, evenly, load_images
from train.data.folders import RESERVED, in_natural_order, natural_key, scan
from train.data.images import to_uint8
from train.data.split import fingerprint, load_split, make_split, save_split
from train.runs import augmented, generated


def grey(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L", size, value)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or grey(100)).save(path, **options)
    return path


def refused(call, *args) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- order and folders


def test_names_sort_as_a_person_counts():
    names = ["ID10", "ID2", "id3", "ID1", "ID01", "ID", "10", "9", "a10b2", "a10b1", "张2", "張1"]
    expected = ["9", "10", "a10b1", "a10b2", "ID", "ID01", "ID1", "ID2", "id3", "ID10", "张2", "張1"]
    assert sorted(names, key=natural_key) == expected


@pytest.mark.parametrize("names", [["r02_1", "r10_0", "r02_0"], ["r2", "r10", "r1"], ["a1", "B1", "a01"], ["é2", "é1"]])
def test_names_that_differ_in_digits_alone_sort_likewise(names):
    assert in_natural_order(names) == sorted(names, key=natural_key)


def test_users_are_folders_of_images_both_in_natural_order(tmp_path):
    for name in ("ID10/b10.PNG", "ID10/b9.jpg", "ID2/x.tif", "a b/1.png", "走る 🚶‍♀️/1.gif", ".x/1.png"):
        save(tmp_path / name)
    (tmp_path / "ID10" / "notes.txt").write_text("no image")
    (tmp_path / "ID10" / "._b9.jpg").write_text("hidden")
    save(tmp_path / "overview.png")
    found = scan(tmp_path)
    assert found.users == ["a b", "ID2", "ID10", "走る 🚶‍♀️"]
    assert [name for own in found.files for name in own] == ["1.png", "x.tif", "b9.jpg", "b10.PNG", "1.gif"]


def test_a_linked_user_is_a_user(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ID1").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert scan(tmp_path / "data").users == ["ID1"]


def test_a_folder_without_users_is_refused_and_told_the_layout(tmp_path):
    assert "no such folder" in refused(scan, tmp_path / "none")
    assert "no such folder" in refused(scan, "nul\0")
    save(tmp_path / "1.png")
    assert "there is no user in it; put each user's images into a folder" in refused(scan, tmp_path)


def test_a_user_with_images_elsewhere_only_is_refused_by_name(tmp_path):
    """In a folder within, or of a format that is not read: without a word, a user would be missing."""
    save(tmp_path / "ID1" / "1.png")
    for name in ("session/1.png", "1.heic", "deep/deeper/1.npy"):
        save(tmp_path / "ID2" / name, format="PNG")
        assert "no image directly in the folder of ID2" in refused(scan, tmp_path)
        shutil.rmtree(tmp_path / "ID2")


def test_folders_that_are_no_users_are_left_out_and_named(tmp_path):
    """Those of systems whatever they hold; any other one where nothing in it is a picture."""
    save(tmp_path / "ID1" / "1.png")
    for system in ("__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN"):
        save(tmp_path / system / "ID1" / "1.png")
        save(tmp_path / system / "1.png")
    (tmp_path / "notes" / "empty").mkdir(parents=True)
    (tmp_path / "notes" / "a.txt").write_text("")
    found = scan(tmp_path)
    assert found.users == ["ID1"]
    assert found.left_out.startswith("6 folders without images ($RECYCLE.BIN, ")
    (tmp_path / "ID1" / "1.png").unlink()
    assert "there is no user in it" in refused(scan, tmp_path)


def test_all_that_is_not_used_is_counted_and_named(tmp_path, capsys):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8))
    for name, form in (("a.png", "PNG"), ("b.jfif", "JPEG"), ("c.JPE", "JPEG"), ("d.ppm", "PPM"), ("e.apng", "PNG")):
        save(tmp_path / "ID1" / name, noise, format=form)
    for name in ("1.heic", "2.heic", "3.npy", "README", "Thumbs.db", ".x", "old/4.png", "old/x/5.txt", "@eaDir/6.png"):
        (tmp_path / "ID1" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "ID1" / name).write_text("")
    save(tmp_path / "overview.png")
    data = load_images(DataConfig(str(tmp_path), resolution=8))
    assert len(data) == 5
    assert capsys.readouterr().err == (
        f"{tmp_path}: not used: 4 files of other formats (2 .heic, 1 .npy, 1 without a suffix: ID1/1.heic, ID1/2.heic, "
        "ID1/3.npy and 1 more); 2 files in folders within the users' (1 .png, 1 .txt: ID1/old/4.png, "
        "ID1/old/x/5.txt); 1 file beside the users' folders (1 .png: overview.png)\n"
    )


def test_a_whole_disk_below_a_folder_is_not_walked(tmp_path, monkeypatch):
    save(tmp_path / "ID1" / "1.png")
    for number in range(9):
        (tmp_path / "ID1" / "old" / str(number)).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "ID1" / "old" / str(number) / name).write_text("")
    monkeypatch.setattr(folders, "MOST_BELOW", 4)
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top: (walked.append(top) or step for step in walk(top)))
    assert scan(tmp_path).left_out.startswith("at least 4 files in folders within the users' (4 without a suffix: ")
    assert len(walked) == 3  # the first has folders only
    monkeypatch.setattr(folders, "_is_litter", lambda name: name in "ab")
    assert scan(tmp_path).left_out == ""
    assert len(walked) == 3 + 4


NFC, NFD = "\u00e9", "e\u0301"  # an accent in one code point, and in two


def test_names_are_the_same_however_accents_are_stored(tmp_path):
    """Users and paths are in NFC, in the same order, with the same split; the files are found where they are."""
    found = []
    for number, accent in enumerate((NFC, NFD)):
        folder = tmp_path / str(number)
        for user in ("z", accent, "f", "e"):
            for name in (f"{accent}1.png", "e1.png", "f1.png"):
                save(folder / user / name)
        data = load_images(config := DataConfig(str(folder), resolution=8, recording_pattern=f"[{accent}fe]"))
        assert all(located(folder, path).is_file() for path in data.paths)
        found.append((data.user_names, data.paths, fingerprint(data, make_split(data, config))))
        save_split(tmp_path / "split.json", make_split(data, config), data, config)
        saved = (tmp_path / "split.json").read_text()
        for text in (saved, saved.replace(NFC, NFD)):
            (tmp_path / "split.json").write_text(text)
            load_split(tmp_path / "split.json", data, config)
    assert found[0] == found[1]
    assert set(found[0][0]) == {"z", NFC, "f", "e"}


def test_a_user_named_like_a_file_that_commands_write_is_refused(tmp_path):
    written = (generated.SETTINGS, generated.AUGMENTED, augmented.MANIFEST, augmented.LEFT_OUT, *augmented.REPORT)
    assert {*written, "grid.png"} == set(RESERVED)
    for name in ("grid.png", "Settings.JSON"):
        save(tmp_path / name / "1.png")
        assert f"{name}: no user can be called so" in refused(scan, tmp_path)
        shutil.rmtree(tmp_path / name)


def test_two_images_of_one_name_are_refused(tmp_path):
    for accent in (NFC, NFD):
        save(tmp_path / "ID1" / f"{accent}.png")
    if len(list((tmp_path / "ID1").iterdir())) == 2:  # on macOS they are one file, and fine
        assert f"ID1: has {NFC}.png twice" in refused(scan, tmp_path)


def test_users_that_differ_in_case_only_are_refused(tmp_path):
    for name in ("Anna", "anna"):
        save(tmp_path / name / "1.png")
    if len(list(tmp_path.iterdir())) == 2:  # on Windows and macOS they are one folder, and fine
        assert "users 'Anna' and 'anna' differ in case only" in refused(scan, tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\udcff"])
def test_a_name_that_no_text_file_can_hold_is_refused(tmp_path, name):
    save(tmp_path / name / "1.png")
    assert f"rename {name!r}" in refused(scan, tmp_path)


# ---- the data set


@pytest.fixture
def folder(tmp_path):
    """Users ID2 and ID10 with 20 images each; image n of a user is grey 10 * user + n."""
    for user in (2, 10):
        for n in range(20):
            save(tmp_path / f"ID{user}" / f"r{n // 4}_{n}.png", grey(10 * user + n))
    return tmp_path


def test_rows_are_users_then_their_files_in_natural_order(folder):
    data = load_images(DataConfig(str(folder), resolution=8, channels=1))
    assert data.user_names == ["ID2", "ID10"]
    assert data.user_index.tolist() == [0] * 20 + [1] * 20
    assert data.paths[:3] == ["ID2/r0_0.png", "ID2/r0_1.png", "ID2/r0_2.png"]
    assert data.images.shape == (40, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images[:][:, 0, 0, 0].tolist() == [*range(20, 40), *range(100, 120)]
    assert len(data) == 40


def test_unreadable_files_are_named_counted_and_left_out(folder, capsys):
    (folder / "ID2" / "r0_1.png").write_bytes(b"")
    (folder / "ID10" / "x.png").mkdir()
    data = load_images(DataConfig(str(folder), resolution=8))
    assert len(data) == 39
    assert "ID2/r0_1.png" not in data.paths
    assert data.images[1].eq(22).all()  # rows move up
    message = capsys.readouterr().err
    assert "left out 2 of 41 images" in message
    assert str(folder / "ID2" / "r0_1.png") in message
    assert str(folder / "ID10" / "x.png") in message


def test_a_single_unreadable_file_is_no_reason_to_stop(tmp_path, capsys):
    for n in range(3):
        save(tmp_path / "ID1" / f"{n}.png")
    (tmp_path / "ID1" / "1.png").write_bytes(b"")
    assert load_images(DataConfig(str(tmp_path), resolution=8)).paths == ["ID1/0.png", "ID1/2.png"]
    assert "left out 1 of 3 images" in capsys.readouterr().err


def test_five_percent_unreadable_is_allowed_and_more_is_refused(folder):
    for n in (0, 1):
        (folder / "ID2" / f"r0_{n}.png").write_bytes(b"")
    load_images(DataConfig(str(folder), resolution=8))
    (folder / "ID2" / "r0_2.png").write_bytes(b"")
    message = refused(load_images, DataConfig(str(folder), resolution=8))
    assert "3 of 40 images cannot be read, more than 5%" in message
    assert str(folder / "ID2" / "r0_2.png") in message


def test_a_user_of_whom_nothing_can_be_read_is_refused_by_name(folder):
    (folder / "ID3").mkdir()
    (folder / "ID3" / "a.png").write_bytes(b"")
    assert "no image of ID3 can be read" in refused(load_images, DataConfig(str(folder), resolution=8))


def test_to_uint8_undoes_batch_for_all_256_levels(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "ID1" / "a.png", Image.fromarray(levels))
    data = load_images(DataConfig(str(tmp_path), resolution=16, channels=1))
    x = data.batch(torch.tensor([0]))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), data.images[:])


def test_only_the_images_that_the_masks_name_are_flipped(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    save(tmp_path / "ID1" / "a.png", Image.fromarray(noise))
    data = load_images(DataConfig(str(tmp_path), resolution=8))
    rows, yes_no = torch.tensor([0, 0]), torch.tensor([True, False])
    plain = data.batch(rows)
    mirrored, upended = data.batch(rows, mirror=yes_no), data.batch(rows, upend=yes_no)
    assert torch.equal(mirrored, torch.stack([plain[0].flip(-1), plain[1]]))
    assert torch.equal(upended, torch.stack([plain[0].flip(-2), plain[1]]))


def test_nothing_is_flipped_unless_asked_for():
    for mirror in (False, True):
        for upend in (False, True):
            config = DataConfig(horizontal_flip=mirror, vertical_flip=upend)
            mirrored, upended = draw_flips(1000, config, torch.Generator().manual_seed(0)).tolist()
            assert 400 * mirror <= sum(mirrored) <= 600 * mirror
            assert 400 * upend <= sum(upended) <= 600 * upend


def test_evenly_takes_the_first_the_last_and_what_lies_between():
    assert evenly(torch.arange(10, 21), 3).tolist() == [10, 15, 20]
    assert evenly(torch.arange(2), 5).tolist() == [0, 1]
    assert evenly(torch.arange(0), 5).tolist() == []
