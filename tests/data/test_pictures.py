"""Each picture is decoded once, and again only when its file has become another one."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from train.base.errors import UserError
from train.config.sections import DataConfig
from train.data import images, pictures, store
from train.data.dataset import load_images
from train.data.split import fingerprint, make_split


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three users with four images each, whose files were written a minute ago, and a store of its own."""
    monkeypatch.setenv(pictures.PLACE, str(tmp_path / "stores"))
    for user in "abc":
        for n in range(4):
            save(tmp_path / "data", f"{user}/{n}.png", ord(user) + 7 * n)
    return tmp_path / "data"


def save(folder, name: str, level: int) -> None:
    """A picture of noise about a level, that is as large a file for any of them."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from now on."""
    names = []

    def read(path, config):
        names.append(f"{path.parent.name}/{path.name}")
        return images.read_image(path, config)

    monkeypatch.setattr(pictures, "read_image", read)
    return names


@pytest.fixture
def later(monkeypatch):
    """Moves the clock of the reading process on, so that files written before are old to it."""
    now = time.time_ns
    monkeypatch.setattr(pictures.time, "time_ns", lambda: now() + 10**10)


def load(folder, **settings):
    return load_images(DataConfig(str(folder), **{"resolution": 8, **settings}))


def plainly(folder, paths: list[str]) -> torch.Tensor:
    config = DataConfig(str(folder), resolution=8)
    return torch.stack([images.read_image(folder / path, config) for path in paths])


def agrees(folder) -> bool:
    data = load(folder)
    return torch.equal(data.images[:], plainly(folder, data.paths))


@pytest.mark.usefixtures("later")
def test_a_second_start_decodes_nothing_and_gives_the_same(folder, decoded, capsys):
    first = load(folder)
    said = capsys.readouterr().err
    assert len(decoded) == 12
    second = load(folder)
    assert len(decoded) == 12
    assert torch.equal(first.images[:], second.images[:])
    assert (first.paths, first.user_names) == (second.paths, second.user_names)
    assert capsys.readouterr().err == said
    config = DataConfig(str(folder))
    assert fingerprint(first, make_split(first, config)) == fingerprint(second, make_split(second, config))


@pytest.mark.usefixtures("later")
def test_only_new_and_changed_pictures_are_decoded(folder, decoded):
    load(folder)
    decoded.clear()
    save(folder, "a/10.png", 3)
    save(folder, "b/2.png", 4)
    (folder / "c/0.png").unlink()
    shutil.rmtree(folder / "a/2.png", ignore_errors=True)
    assert agrees(folder)
    assert decoded == ["a/10.png", "b/2.png"]
    save(folder, "c/0.png", ord("c"))  # there again, as it was
    assert agrees(folder)
    assert decoded == ["a/10.png", "b/2.png"]


@pytest.mark.usefixtures("later")
def test_other_content_is_seen_though_size_and_time_are_as_before(folder, decoded):
    load(folder)
    decoded.clear()
    before = (folder / "b/1.png").stat()
    save(folder, "b/1.png", 200)
    os.utime(folder / "b/1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / "b/1.png").stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert agrees(folder)
    assert decoded == ["b/1.png"]


def test_times_that_cannot_tell_are_not_believed(folder, decoded, monkeypatch):
    """A file may be written twice within one tick of the clock, and some places know no times."""
    for times in (None, (0, 0, 0), (50, 2**62, 2**62)):
        if times:
            def states(paths, times=times):
                return np.array([(os.stat(path).st_size, *times[1:]) for path in paths])

            monkeypatch.setattr(pictures, "_states", states)
        load(folder)
        decoded.clear()
        load(folder)
        assert decoded == []
        save(folder, "b/1.png", 200 + len(str(times)))
        assert agrees(folder)
        assert decoded == ["b/1.png"]


@pytest.mark.usefixtures("later")
def test_a_file_that_was_only_touched_or_linked_is_not_decoded(folder, decoded, monkeypatch):
    load(folder)
    decoded.clear()
    os.utime(folder / "a/1.png", (1, 1))
    os.link(folder / "a/2.png", folder.parent / "elsewhere.png")
    load(folder)
    assert decoded == []
    monkeypatch.setattr(pictures, "_content", None)  # and once it is known, not even read
    load(folder)


@pytest.mark.usefixtures("later")
def test_resolution_channels_and_decoder_have_pictures_of_their_own(folder, decoded, monkeypatch):
    for settings in ({}, {"resolution": 16}, {"channels": 1}, {"resolution": 16, "channels": 1}):
        for _ in range(2):
            data = load(folder, **settings)
        side, channels = settings.get("resolution", 8), settings.get("channels", 3)
        assert data.images.shape == (12, channels, side, side)
    assert len(decoded) == 4 * 12
    monkeypatch.setattr(pictures, "DECODING", "another")
    load(folder)
    assert len(decoded) == 5 * 12


@pytest.mark.usefixtures("later")
def test_decoding_that_is_interrupted_goes_on(folder, decoded, monkeypatch):
    monkeypatch.setattr(pictures, "TASK", 2)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_image", lambda path, config: _interrupted(path, config, decoded))
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    decoded.clear()
    assert agrees(folder)
    assert len(decoded) == 12 - 6


def _interrupted(path, config, decoded):
    if path.match("b/3.png"):
        raise KeyboardInterrupt
    return images.read_image(path, config)


def test_several_processes_decode_what_one_would(folder, monkeypatch):
    monkeypatch.setattr(pictures.os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(pictures, "PER_PROCESS", 1e-9)
    monkeypatch.setattr(pictures, "TASK", 1)
    (folder / "a/0.png").write_bytes(b"no picture")
    data = load(folder)
    assert len(data) == 11
    assert torch.equal(data.images[:], plainly(folder, data.paths))


@pytest.mark.usefixtures("later")
def test_what_cannot_be_read_and_what_shows_little_is_said_each_time(folder, capsys):
    (folder / "a/0.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8), "red").save(folder / "b/0.png")
    said = []
    for _ in range(2):
        load(folder)
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert f"left out 1 of 12 images\n  {folder}/a/0.png: not an image" in said[0]
    assert "of a single colour, so nothing can be learned from them: 1 of 11 images (b/0.png)" in said[0]


@pytest.mark.usefixtures("later")
def test_a_picture_that_a_disk_has_altered_is_decoded_where_it_is_read(folder, decoded, capsys):
    load(folder)
    (rows,) = (folder.parent / "stores").glob("*/rows.raw")
    rows.write_bytes(bytes(rows.stat().st_size))
    decoded.clear()
    data = load(folder)
    assert decoded == []
    assert torch.equal(data.images[torch.tensor([5, 5])], plainly(folder, ["b/1.png"] * 2))
    assert set(decoded) == {"b/1.png"}
    assert "is damaged; rows of it are made anew where they are read" in capsys.readouterr().err
    assert agrees(folder)


@pytest.mark.usefixtures("later")
def test_a_store_that_is_mostly_of_pictures_that_are_gone_is_made_anew(folder, decoded, monkeypatch, capsys):
    monkeypatch.setattr(store, "WASTE", 0)
    load(folder)
    for user in "ab":
        shutil.rmtree(folder / user)
    save(folder, "c/9.png", 1)
    assert agrees(folder)
    (rows,) = (folder.parent / "stores").glob("*/rows.raw")
    assert rows.stat().st_size == 5 * 3 * 8 * 8
    assert "holds mostly pictures that are gone" in capsys.readouterr().err


def test_the_store_is_where_the_variable_says_or_among_the_caches(folder, tmp_path, monkeypatch):
    def place() -> str:
        return str(pictures.place_of(folder, DataConfig(str(folder))).parent)

    monkeypatch.setenv(pictures.PLACE, "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place() == str(tmp_path / "x")
    monkeypatch.delenv(pictures.PLACE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert place() == str(tmp_path / ".cache/user-latent-diffusion")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert place() == str(tmp_path / "caches/user-latent-diffusion")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1/none")
    assert place().startswith(pictures.tempfile.gettempdir())
    for within in (folder, folder / "deeper"):
        monkeypatch.setenv(pictures.PLACE, str(within))
        with pytest.raises(UserError, match="lies within"):
            place()


def test_a_disk_without_room_for_the_pictures_is_told_before_they_are_read(folder, decoded, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match="are free; set LDM_STORE to a folder with more"):
        load(folder)
    assert decoded == []
