"""Laws of the split into training and validation images."""

import json
from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.config.sections import DataConfig
from train.data.dataset import UserImages
from train.data.split import fingerprint, load_split, make_split, save_split

BY_RECORDING = DataConfig(recording_pattern=r"_r(\d+)_", validation_fraction=0.2)
BY_FILE = DataConfig(dir="walks")


def images(users: int = 3, recordings: int = 10, windows: int = 4, without: str = "") -> UserImages:
    """A data set of names only: `ID1/walk_r0_w0.png`, ..., of one black pixel each."""
    paths = [
        f"ID{user + 1}/walk_r{r}_w{w}.png"
        for user in range(users)
        for r in range(recordings)
        for w in range(windows)
        if f"ID{user + 1}/walk_r{r}_w{w}.png" != without
    ]
    user_index = torch.tensor([int(path[2 : path.index("/")]) - 1 for path in paths])
    pixels = torch.zeros(len(paths), 1, 1, 1, dtype=torch.uint8)
    return UserImages(pixels, user_index, [f"ID{user + 1}" for user in range(users)], paths)


def held_out(data: UserImages, config: DataConfig) -> set[str]:
    return {data.paths[row] for row in make_split(data, config).validation.tolist()}


def recordings_of(paths: set[str]) -> set[str]:
    return {path.rsplit("_", 1)[0] for path in paths}


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config", [BY_RECORDING, BY_FILE])
def test_every_image_is_on_exactly_one_side(config):
    data = images()
    split = make_split(data, config)
    assert sorted(split.train.tolist() + split.validation.tolist()) == list(range(len(data)))


def test_no_recording_is_on_both_sides():
    data = images()
    validation = held_out(data, BY_RECORDING)
    assert not recordings_of(validation) & recordings_of(set(data.paths) - validation)


def test_every_user_is_on_both_sides_with_the_share_asked_for():
    data = images()
    split = make_split(data, BY_RECORDING)
    assert data.user_index[split.validation].bincount().tolist() == [8, 8, 8]  # 2 of 10 recordings, 4 windows
    assert data.user_index[split.train].bincount().tolist() == [32, 32, 32]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_recordings_are_one_on_each_side_for_any_fraction(fraction):
    config = DataConfig(recording_pattern=r"_r(\d+)_", validation_fraction=fraction)
    assert make_split(images(recordings=2), config).validation.numel() == 3 * 4


def test_recordings_of_the_same_name_of_two_users_are_two(capsys):
    data = images(users=20)
    names = [Path(name) for name in recordings_of(held_out(data, BY_RECORDING))]  # ID1/walk_r0
    own = {user: {name.name for name in names if name.parent.name == user} for user in data.user_names}
    assert len({frozenset(recordings) for recordings in own.values()}) > 1
    assert capsys.readouterr().err == ""


def test_without_a_group_the_whole_match_is_the_recording():
    whole = DataConfig(recording_pattern=r"(?<=_r)\d+(?=_)", validation_fraction=0.2)
    assert held_out(images(), whole) == held_out(images(), BY_RECORDING)


def test_the_split_depends_on_names_and_seed_not_on_file_order():
    data = images()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    paths = [data.paths[row] for row in order]
    shuffled = UserImages(data.images, data.user_index[order], data.user_names, paths)
    assert held_out(shuffled, BY_RECORDING) == held_out(data, BY_RECORDING)
    other_seed = DataConfig(recording_pattern=r"_r(\d+)_", validation_fraction=0.2, seed=1)
    assert held_out(data, other_seed) != held_out(data, BY_RECORDING)


def test_a_new_recording_moves_at_most_one_other_per_user():
    before = recordings_of(held_out(images(recordings=10), BY_RECORDING))
    after = recordings_of(held_out(images(recordings=11), BY_RECORDING))
    assert len(before - after) <= 3


def test_a_user_with_a_single_recording_trains_and_is_named(capsys):
    data = images(users=2, recordings=2)
    data.paths[8:] = [f"ID2/walk_r0_w{n}.png" for n in range(8)]
    split = make_split(data, BY_RECORDING)
    assert (data.user_index[split.train] == 1).sum() == 8
    assert "one recording only, hence no validation: ID2" in capsys.readouterr().err


def test_nothing_to_validate_with_is_refused():
    assert "every user has a single recording" in refused(make_split, images(recordings=1), BY_RECORDING)


@pytest.mark.parametrize("pattern", ["session", "x*", "(x)?walk"])
def test_a_file_in_which_the_pattern_finds_no_recording_is_named(pattern):
    message = refused(make_split, images(), DataConfig(recording_pattern=pattern))
    assert message.startswith("ID1/walk_r0_w0.png: data.recording_pattern")
    assert repr(pattern) in message


# ---- saved


def test_a_saved_split_is_read_back_as_the_same_rows(tmp_path):
    data = images()
    split = make_split(data, BY_RECORDING)
    save_split(tmp_path / "split.json", split, data, BY_RECORDING)
    again = load_split(tmp_path / "split.json", data, BY_RECORDING)
    assert torch.equal(again.train, split.train)
    assert torch.equal(again.validation, split.validation)
    assert again.train.dtype == torch.int64
    saved = json.loads((tmp_path / "split.json").read_text())
    assert saved["settings"] == {"recording_pattern": r"_r(\d+)_", "validation_fraction": 0.2, "seed": 0}
    assert saved["train"][0].startswith("ID1/walk_r")


@pytest.fixture
def saved(tmp_path) -> Path:
    data = images()
    save_split(tmp_path / "split.json", make_split(data, BY_RECORDING), data, BY_RECORDING)
    return tmp_path / "split.json"


def test_a_split_of_other_files_is_refused_and_names_one(saved):
    less = images(without="ID2/walk_r3_w1.png")
    message = refused(load_split, saved, less, BY_RECORDING)
    assert "1 were added, removed or listed twice, the first is ID2/walk_r3_w1.png" in message
    assert "does not fit" in refused(load_split, saved, images(recordings=11), BY_RECORDING)


def test_a_split_of_other_settings_is_refused(saved):
    other = DataConfig(recording_pattern=r"_r(\d+)_", validation_fraction=0.3)
    message = refused(load_split, saved, images(), other)
    assert "was made with data.validation_fraction 0.2, not 0.3" in message


def test_an_edited_split_must_stay_a_split(saved):
    good = json.loads(saved.read_text())
    everything = sorted(good["train"] + good["validation"])
    for train, validation, expected in (
        (good["train"] + good["validation"][:1], good["validation"], "does not fit"),
        (everything, [], "one side of the split is empty"),
        (None, good["validation"], "is not a saved split"),
        ([1], good["validation"], "does not fit"),
    ):
        saved.write_text(json.dumps({**good, "train": train, "validation": validation}))
        assert expected in refused(load_split, saved, images(), BY_RECORDING)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}', "{"])
def test_a_file_that_is_no_split_is_refused_by_name(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    assert "split.json" in refused(load_split, tmp_path / "split.json", images(), BY_RECORDING)
    assert "none.json" in refused(load_split, tmp_path / "none.json", images(), BY_RECORDING)


def test_the_fingerprint_sees_pixels_names_users_and_split():
    data, split = images(), make_split(images(), BY_RECORDING)
    same = fingerprint(data, split)
    assert fingerprint(images(), make_split(images(), BY_RECORDING)) == same
    pixel = data.images.clone()
    pixel[7] = 1
    renamed = [name.lower() for name in data.user_names]
    others = [
        fingerprint(UserImages(pixel, data.user_index, data.user_names, data.paths), split),
        fingerprint(UserImages(data.images, data.user_index, renamed, data.paths), split),
        fingerprint(UserImages(data.images, data.user_index.flip(0), data.user_names, data.paths), split),
        fingerprint(UserImages(data.images, data.user_index, data.user_names, data.paths[::-1]), split),
        fingerprint(data, make_split(data, DataConfig(dir="walks", seed=1))),
    ]
    assert len({same, *others}) == 6
