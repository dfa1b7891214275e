"""Laws of the split into images that train, that validate and that are held out."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.config.sections import DataConfig
from train.data.dataset import UserImages
from train.data.split import SIDES, adapt_split, fingerprint, load_split, make_split, save_split, training_images

PATTERN = r"_r(\d+)_"
BY_RECORDING = DataConfig(recording_pattern=PATTERN, validation_fraction=0.2)
TWO_TRAIN = DataConfig(recording_pattern=PATTERN, validation_fraction=0.2, recordings_per_user=2)
BY_FILE = DataConfig(dir="walks")


def images(users: int = 3, recordings: int = 10, windows: int = 4, without: str = "") -> UserImages:
    """A data set of names only: `ID1/walk_r0_w0.png`, ..., of one black pixel each."""
    names = [
        f"ID{user + 1}/walk_r{r}_w{w}.png"
        for user in range(users)
        for r in range(recordings)
        for w in range(windows)
        if f"ID{user + 1}/walk_r{r}_w{w}.png" != without
    ]
    user_index = torch.tensor([int(path[2 : path.index("/")]) - 1 for path in names])
    pixels = torch.zeros(len(names), 1, 1, 1, dtype=torch.uint8)
    return UserImages(pixels, user_index, [f"ID{user + 1}" for user in range(users)], names)


def paths(data: UserImages, config: DataConfig, side: str) -> set[str]:
    return {data.paths[row] for row in getattr(make_split(data, config), side).tolist()}


def held_out(data: UserImages, config: DataConfig) -> set[str]:
    return paths(data, config, "held_out")


def recordings_of(paths: set[str]) -> set[str]:
    return {path.rsplit("_", 1)[0] for path in paths}


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config", [BY_RECORDING, BY_FILE, TWO_TRAIN])
def test_every_image_is_on_exactly_one_side(config):
    data = images()
    split = make_split(data, config)
    sides = [split.train.tolist(), split.validation.tolist(), split.held_out.tolist()]
    assert sorted(chain(*sides)) == list(range(len(data)))
    assert all(side == sorted(side) for side in sides)
    assert split.training.tolist() == sorted(sides[0] + sides[1])


@pytest.mark.parametrize("config", [BY_RECORDING, TWO_TRAIN])
def test_no_recording_trains_and_is_held_out(config):
    data = images()
    out = held_out(data, config)
    assert not recordings_of(out) & recordings_of(set(data.paths) - out)


def test_every_user_is_on_every_side_with_the_share_asked_for():
    data = images()
    split = make_split(data, BY_RECORDING)
    assert data.user_index[split.held_out].bincount().tolist() == [8, 8, 8]  # 2 of 10 recordings, 4 windows
    assert data.user_index[split.validation].bincount().tolist() == [6, 6, 6]  # a fifth of the 32 others
    assert data.user_index[split.train].bincount().tolist() == [26, 26, 26]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_recordings_are_one_on_each_side_for_any_fraction(fraction):
    config = DataConfig(recording_pattern=PATTERN, validation_fraction=fraction)
    assert make_split(images(recordings=2), config).held_out.numel() == 3 * 4


# ---- how many recordings train


@pytest.mark.parametrize(("asked_for", "train"), [(1, 1), (2, 2), (9, 9), (10, 9), (99, 9)])
def test_so_many_recordings_train_but_one_at_least_is_held_out(asked_for, train):
    config = replace(TWO_TRAIN, recordings_per_user=asked_for)
    assert len(recordings_of(paths(images(), config, "training"))) == 3 * train


def test_more_training_recordings_are_the_same_and_others():
    trained = [
        recordings_of(paths(images(), replace(BY_RECORDING, recordings_per_user=asked_for), "training"))
        for asked_for in (1, 2, 3, 5, None, 9)  # None: 8
    ]
    assert all(fewer < more for fewer, more in pairwise(trained))


# ---- what validates


def test_validation_takes_the_last_images_of_as_few_recordings_as_can_be():
    """In natural order: w10 comes after w9."""
    data = images(users=5, recordings=4, windows=12)
    by_user = defaultdict(list)
    for path in paths(data, TWO_TRAIN, "validation"):
        by_user[path.partition("/")[0]].append(path)
    assert len(by_user) == 5
    for own in by_user.values():  # a fifth of 24
        assert len(recordings_of(set(own))) == 1
        assert {path.rpartition("_")[2] for path in own} == {f"w{w}.png" for w in (7, 8, 9, 10, 11)}
    most = replace(TWO_TRAIN, validation_fraction=0.75)  # 18 of 24: one recording, and the end of the other
    windows = Counter(path.rpartition("_")[2] for path in paths(data, most, "validation"))
    assert windows == Counter({f"w{w}.png": 5 * (1 + (w >= 6)) for w in range(12)})


def test_the_recording_that_validates_stays_as_more_of_them_train():
    validating = [
        recordings_of(paths(images(), replace(BY_RECORDING, recordings_per_user=asked_for), "validation"))
        for asked_for in (1, 2, 5)
    ]
    assert validating[0] == validating[1]
    assert validating[0] <= validating[2]


def test_a_users_single_training_image_trains():
    one, two = images(users=1, recordings=2, windows=1), images(users=2, recordings=2, windows=2)
    names = [*one.paths, *(path for path in two.paths if path.startswith("ID2"))]
    data = UserImages(two.images[:6], torch.tensor([0, 0, 1, 1, 1, 1]), two.user_names, names)
    split = make_split(data, TWO_TRAIN)
    assert data.user_index[split.train].tolist() == [0, 1]
    assert data.user_index[split.validation].tolist() == [1]
    assert data.user_index[split.held_out].tolist() == [0, 1, 1]


def test_users_of_one_training_image_each_are_refused():
    message = refused(make_split, images(recordings=3, windows=1), replace(TWO_TRAIN, recordings_per_user=1))
    assert "no user has a second image in the recordings that train, so none is left to validate with" in message


# ---- what the choice depends on


def test_recordings_of_the_same_name_of_two_users_are_two(capsys):
    data = images(users=20)
    names = [Path(name) for name in recordings_of(held_out(data, BY_RECORDING))]  # ID1/walk_r0
    own = {user: {name.name for name in names if name.parent.name == user} for user in data.user_names}
    assert len({frozenset(recordings) for recordings in own.values()}) > 1
    assert capsys.readouterr().err == ""


def test_without_a_group_the_whole_match_is_the_recording():
    whole = replace(BY_RECORDING, recording_pattern=r"(?<=_r)\d+(?=_)")
    assert held_out(images(), whole) == held_out(images(), BY_RECORDING)


def test_the_split_depends_on_names_and_seed_not_on_file_order():
    data = images()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    names = [data.paths[row] for row in order]
    shuffled = UserImages(data.images, data.user_index[order], data.user_names, names)
    assert held_out(shuffled, BY_RECORDING) == held_out(data, BY_RECORDING)
    assert paths(shuffled, BY_RECORDING, "validation") == paths(data, BY_RECORDING, "validation")
    assert held_out(data, replace(BY_RECORDING, seed=1)) != held_out(data, BY_RECORDING)


@pytest.mark.parametrize("config", [BY_RECORDING, TWO_TRAIN])
def test_a_new_recording_moves_at_most_one_other_per_user(config):
    before, after = (recordings_of(held_out(images(recordings=count), config)) for count in (10, 11))
    assert len(before - after) <= 3
    before, after = (recordings_of(paths(images(recordings=count), config, "training")) for count in (10, 11))
    assert len(before - after) <= 3


def test_a_user_with_a_single_recording_trains_and_is_named(capsys):
    data = images(users=2, recordings=2)
    data.paths[8:] = [f"ID2/walk_r0_w{n}.png" for n in range(8)]
    split = make_split(data, BY_RECORDING)
    assert (data.user_index[split.training] == 1).sum() == 8
    assert "one recording only, hence nothing of it is held out: ID2" in capsys.readouterr().err


def test_nothing_to_hold_out_is_refused():
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
    for side in SIDES:
        assert torch.equal(getattr(again, side), getattr(split, side))
        assert getattr(again, side).dtype == torch.int64
    saved = json.loads((tmp_path / "split.json").read_text())
    assert saved["settings"] == {
        "recording_pattern": PATTERN, "recordings_per_user": None, "validation_fraction": 0.2, "seed": 0
    }  # fmt: skip
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
    message = refused(load_split, saved, images(), replace(BY_RECORDING, validation_fraction=0.3))
    assert "was made with data.validation_fraction 0.2, not 0.3" in message
    assert "was made with data.recordings_per_user None, not 2" in refused(load_split, saved, images(), TWO_TRAIN)


def test_a_split_of_an_earlier_version_is_refused_as_such(saved):
    old = json.loads(saved.read_text())
    old["validation"] += old.pop("held_out")
    del old["settings"]["recordings_per_user"]
    saved.write_text(json.dumps(old))
    message = refused(load_split, saved, images(), BY_RECORDING)
    assert "split.json: was made by an earlier version, which held no recordings out of training; train VAE" in message


def test_an_edited_split_must_stay_a_split(saved):
    good = json.loads(saved.read_text())
    everything = sorted(chain(*(good[side] for side in SIDES)))
    for changed, expected in (
        ({"train": good["train"] + good["validation"][:1]}, "does not fit"),
        ({"train": good["train"] + good["held_out"][:1]}, "does not fit"),
        ({"train": everything, "validation": [], "held_out": []}, "one side of the split is empty"),
        ({"train": good["train"] + good["validation"], "validation": []}, "one side of the split is empty"),
        ({"train": None}, "is not as it was written"),
        ({"held_out": None}, "is not as it was written"),
        ({"train": [1]}, "does not fit"),
    ):
        saved.write_text(json.dumps(good | changed))
        assert expected in refused(load_split, saved, images(), BY_RECORDING)


# ---- a split of a VAE, for other images


def subset(data: UserImages, keep) -> UserImages:
    """The images whose paths `keep` says yes to; users that are left without any are none."""
    rows = [row for row, path in enumerate(data.paths) if keep(path)]
    names = [name for name in data.user_names if any(data.paths[row].startswith(f"{name}/") for row in rows)]
    paths = [data.paths[row] for row in rows]
    index = torch.tensor([names.index(path.partition("/")[0]) for path in paths])
    return UserImages(data.images[rows], index, names, paths)


def named(data: UserImages, split) -> dict[str, str]:
    """The side of each file."""
    return {data.paths[row]: side for side in SIDES for row in getattr(split, side).tolist()}


def window(path: str) -> int:
    return int(path.rpartition("_w")[2][:-4])


def take(users: int, recordings: int, windows: int, skip: int = 0) -> Callable[[str], bool]:
    """Of 6 users with 12 recordings of 6 windows; every `skip`-th file is left out."""
    kept = images(users, recordings, windows).paths
    return lambda path: path in kept and not (skip and sum(map(ord, path)) % skip == 0)


OTHERS = {
    "a user more": (take(3, 8, 4), take(4, 8, 4)),
    "a user less": (take(4, 8, 4), take(3, 8, 4)),
    "a recording more": (take(3, 8, 4), take(3, 9, 4)),
    "recordings more and less": (take(3, 8, 4, 3), take(5, 11, 4, 5)),
    "windows more": (take(3, 8, 4), take(3, 8, 6)),
    "windows less": (take(3, 8, 6), take(3, 8, 2)),
    "other windows of all": (take(3, 8, 3), lambda path: take(3, 8, 6)(path) and window(path) >= 3),
    "all of it": (take(3, 8, 4), take(6, 12, 6)),
    "others only": (take(2, 8, 4), lambda path: not path.startswith(("ID1/", "ID2/"))),
}


@pytest.mark.parametrize("config", [BY_RECORDING, TWO_TRAIN])
@pytest.mark.parametrize("name", OTHERS)
def test_what_both_know_keeps_its_side_and_recordings_stay_whole(tmp_path, name, config):
    """No file of a recording that the VAE has seen is held out, and none of a held-out one trains."""
    everything = images(6, 12, 6)
    old, new = (subset(everything, keep) for keep in OTHERS[name])
    before = make_split(old, config)
    save_split(tmp_path / "split.json", before, old, config)
    known, found = named(old, before), named(new, adapt_split([tmp_path / "split.json"], new, config))
    assert sorted(found) == sorted(new.paths)
    held = {side: recordings_of({path for path, its in (known | found).items() if (its == "held_out") == side})
            for side in (True, False)}  # fmt: skip
    assert not held[True] & held[False]
    for user in new.user_names:
        own = {path: side for path, side in found.items() if path.startswith(f"{user}/")}
        assert set(own.values()) == set(SIDES)
        before = {path: known[path] for path in own if path in known}
        trained = len({"train", "validation"} & set(before.values())) == 2 or len(before) < len(own)
        for path, side in before.items():  # where only one of the two is left of a user, it is divided again
            assert (own[path] == side) if trained else ((own[path] == "held_out") == (side == "held_out"))


@pytest.mark.parametrize("config", [BY_RECORDING, TWO_TRAIN])
def test_a_new_user_is_split_as_in_a_new_split(tmp_path, config):
    old, new = images(users=3), images(users=4)
    save_split(tmp_path / "split.json", make_split(old, config), old, config)
    assert named(new, adapt_split([tmp_path / "split.json"], new, config)) == named(new, make_split(new, config))


def test_new_recordings_make_up_the_number_that_is_held_out(tmp_path):
    """Ten more where two of ten are held out by a fifth: two of them. Where two train, all of them."""
    old, new = images(recordings=10), images(recordings=20)
    for config, out in ((BY_RECORDING, 4), (TWO_TRAIN, 18)):
        save_split(tmp_path / "split.json", make_split(old, config), old, config)
        split = adapt_split([tmp_path / "split.json"], new, config)
        assert len(recordings_of({new.paths[row] for row in split.held_out.tolist()})) == 3 * out
        assert len(split.validation) == pytest.approx(0.2 * len(split.training), abs=2)


def test_a_new_window_goes_with_its_neighbour(tmp_path):
    """Before the validating end of a recording it trains, behind it validates."""
    old = subset(images(windows=6), lambda path: window(path) not in (1, 5))
    save_split(tmp_path / "split.json", make_split(old, TWO_TRAIN), old, TWO_TRAIN)
    known, found = (named(old, make_split(old, TWO_TRAIN)),
                    named(images(windows=6), adapt_split([tmp_path / "split.json"], images(windows=6), TWO_TRAIN)))
    for path, side in found.items():
        if path not in known:
            assert side == known[path.replace("_w1.", "_w0.").replace("_w5.", "_w4.")]


def test_one_line_says_what_is_kept_new_and_gone(saved, capsys):
    new = subset(images(users=4), lambda path: not path.startswith("ID1/"))
    adapt_split([saved], new, BY_RECORDING)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (f"{saved}: is of other images; of the 120 in data/simulated 80 keep their side and 40 are split by "
                    "the same rule (40 of its own are gone)")  # fmt: skip
    adapt_split([saved], images(), BY_RECORDING)
    assert capsys.readouterr().err == ""


def test_other_settings_matter_only_where_files_are_known(saved, capsys):
    other = replace(BY_RECORDING, validation_fraction=0.3)
    message = refused(adapt_split, [saved], images(users=4), other)
    assert "was made with data.validation_fraction 0.2, not 0.3" in message
    strangers = subset(images(users=5), lambda path: path.startswith(("ID4", "ID5")))
    by_file = DataConfig(recording_pattern="w.*")
    found = adapt_split([saved], strangers, by_file)
    assert named(strangers, found) == named(strangers, make_split(strangers, by_file))


def test_a_user_of_held_out_recordings_only_is_refused_by_name(saved):
    data = images()
    out = {data.paths[row] for row in make_split(data, BY_RECORDING).held_out.tolist()}
    left = subset(data, lambda path: not path.startswith("ID2/") or path in out)
    assert "all that there is of ID2 was held out when the VAE was trained" in refused(
        adapt_split, [saved], left, BY_RECORDING
    )


def test_a_user_of_validation_images_only_trains_with_some(saved):
    data = images()
    watched = {data.paths[row] for row in make_split(data, BY_RECORDING).validation.tolist()}
    left = subset(data, lambda path: not path.startswith("ID2/") or path in watched)
    own = Counter(side for path, side in named(left, adapt_split([saved], left, BY_RECORDING)).items() if "ID2" in path)
    assert set(own) == {"train", "validation"}


# ---- a split of more than one model


def lineage(folder: Path, data: UserImages, later: UserImages, config: DataConfig) -> dict[str, dict[str, str]]:
    """The sides in the split of a VAE of `data`, and in that of an LDM of `later`, which uses it; both are saved."""
    of_vae = make_split(data, config)
    save_split(folder / "vae.json", of_vae, data, config)
    of_ldm = adapt_split([folder / "vae.json"], later, config)
    save_split(folder / "ldm.json", of_ldm, later, config)
    return {"vae": named(data, of_vae), "ldm": named(later, of_ldm)}


@pytest.mark.parametrize("config", [BY_RECORDING, TWO_TRAIN, BY_FILE])
@pytest.mark.parametrize("first", ["vae", "ldm"])
def test_what_a_model_that_goes_on_learned_still_trains(tmp_path, config, first):
    """And what the VAE or it held out is held out, whatever comes and goes; all orders of the two splits agree."""
    everything = images(users=5, recordings=8)
    at_first = subset(everything, take(3, 6, 4))
    then = subset(everything, lambda path: not path.startswith("ID2/") and window(path) != 3)
    before = lineage(tmp_path, at_first, then, config)
    order = [tmp_path / "vae.json", tmp_path / "ldm.json"]
    for last in (everything, subset(everything, lambda path: window(path) < 3 and not path.startswith("ID5/"))):
        found = named(last, adapt_split(order if first == "vae" else order[1:], last, config, goes_on=True))
        assert set(found.values()) == set(SIDES)
        for path, side in found.items():
            sides = {known[path] for known in before.values() if path in known}
            assert side == "held_out" or "held_out" not in sides, path
            assert side == "train" or before["ldm"].get(path) != "train", path


def test_only_where_no_model_goes_on_may_training_images_validate(saved):
    data, split = images(), make_split(images(), BY_RECORDING)
    watched = {data.paths[row] for row in split.validation.tolist() if data.paths[row].startswith("ID2")}
    left = subset(data, lambda path: path not in watched)
    for goes_on, sides in ((False, {"train", "validation"}), (True, {"train"})):
        found = named(left, adapt_split([saved], left, BY_RECORDING, goes_on))
        own = {side for path, side in found.items() if path.startswith("ID2")}
        assert own - {"held_out"} == sides


def test_files_that_come_back_are_known_to_a_split_without_them(tmp_path):
    everything = images(users=4)
    without = subset(everything, lambda path: not path.startswith("ID2/"))
    before = lineage(tmp_path, everything, without, BY_RECORDING)
    again = adapt_split([tmp_path / "ldm.json"], everything, BY_RECORDING)
    assert named(everything, again) == before["vae"]
    assert load_split(tmp_path / "ldm.json", without, BY_RECORDING).gone.keys() == before["vae"].keys() - before["ldm"]


def test_what_one_has_learned_and_another_holds_out_is_refused(saved, tmp_path):
    data, split = images(), make_split(images(), BY_RECORDING)
    save_split(tmp_path / "other.json", replace(split, train=split.held_out, held_out=split.train), data, BY_RECORDING)
    said = refused(adapt_split, [saved, tmp_path / "other.json"], data, BY_RECORDING)
    assert "split.json and " in said
    assert "do not go together: one has trained on ID1/walk_r" in said


def test_a_saved_split_tells_how_many_images_of_a_user_train(tmp_path):
    data = images(without="ID2/walk_r3_w1.png")
    save_split(tmp_path / "split.json", split := make_split(data, BY_RECORDING), data, BY_RECORDING)
    counts = data.user_index[split.training].bincount().tolist()
    assert training_images(tmp_path / "split.json") == dict(zip(data.user_names, counts, strict=True))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}', "{"])
def test_a_file_that_is_no_split_is_refused_by_name(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    assert "split.json" in refused(load_split, tmp_path / "split.json", images(), BY_RECORDING)
    assert "split.json" in refused(training_images, tmp_path / "split.json")
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
        fingerprint(data, replace(split, train=split.held_out, held_out=split.train)),
        fingerprint(data, replace(split, train=split.validation, validation=split.train)),
        fingerprint(data, replace(split, validation=split.held_out, held_out=split.validation)),
    ]
    assert len({same, *others}) == 8
