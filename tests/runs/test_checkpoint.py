"""A checkpoint is whole and true, or it is named and the one before it is used."""

import errno
import hashlib
import os
import resource
import shutil
from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.tiny import tiny
from train.base.errors import UserError
from train.base.files import write_json
from train.runs.checkpoint import (
    Unchanged,
    last_good,
    list_checkpoints,
    load_latest,
    require_disk,
    save_checkpoint,
    set_aside_later,
)


def save(folder, *steps, keep=10, best=()):
    """Checkpoints that each hold a tensor of their own step."""
    for step in steps:
        save_checkpoint(folder, step, {"model": {"w": torch.full((100,), float(step))}}, keep, step in best)


def latest(folder) -> int:
    """The step of the newest good checkpoint, whose content must be that step's."""
    found = load_latest(folder)
    assert torch.equal(found.state["model"]["w"], torch.full((100,), float(found.step)))
    return found.step


def go_on(folder) -> int:
    """As a run does that is started again."""
    step = latest(folder)
    set_aside_later(folder, step)
    return step


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(folder, step, how):
    path = folder / f"step_{step:08d}"
    state = path / "state.pt"
    if how == "no state":
        state.unlink()
    elif how == "no checksum":
        (path / "checksum.json").unlink()
    elif how == "corrupt checksum":
        (path / "checksum.json").write_text("{")
    elif how == "empty":
        state.write_bytes(b"")
    elif how == "truncated":
        os.truncate(state, state.stat().st_size - 1)
    elif how == "one bit":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)


def test_what_was_saved_is_loaded(tmp_path):
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 1e-3}
    state = {"model": {"w": torch.randn(3, 4)}, "optimizer": optimizer}
    save_checkpoint(tmp_path, 7, state, keep=1)
    found = load_latest(tmp_path)
    loaded = found.state
    assert (found.path, found.step) == (tmp_path / "step_00000007", 7)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["optimizer"]["lr"] == 1e-3
    assert torch.equal(loaded["optimizer"]["state"][0]["step"], torch.tensor(3.0))


def test_a_run_without_checkpoints_starts_from_the_beginning(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "not there") is None


def test_the_newest_is_loaded_by_number_and_not_by_age(tmp_path):
    save(tmp_path, 100, 90)
    save(tmp_path, 1000)
    assert latest(tmp_path) == 1000


@pytest.mark.parametrize(
    "how", ["no state", "no checksum", "corrupt checksum", "empty", "truncated", "one bit"]
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, capsys, how):
    save(tmp_path, 10, 20, 30)
    damage(tmp_path, 30, how)
    assert latest(tmp_path) == 20
    assert "step_00000030" in capsys.readouterr().err


def test_two_damaged_ones_are_passed_over(tmp_path):
    save(tmp_path, 10, 20, 30)
    damage(tmp_path, 30, "truncated")
    damage(tmp_path, 20, "one bit")
    assert latest(tmp_path) == 10


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(tmp_path):
    save(tmp_path, 10, 20)
    damage(tmp_path, 10, "one bit")
    damage(tmp_path, 20, "truncated")
    with pytest.raises(UserError, match="no checkpoint in it is whole"):
        load_latest(tmp_path)
    assert names(tmp_path) == ["step_00000010", "step_00000020"]


def test_a_leftover_temporary_folder_is_ignored_and_then_removed(tmp_path):
    save(tmp_path, 10)
    leftover = tmp_path / ".step_00000020.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half a file")
    assert latest(tmp_path) == 10
    save(tmp_path, 15)
    assert names(tmp_path) == ["step_00000010", "step_00000015"]


@pytest.mark.parametrize("victim", ["save", "fsync", "write_json", "replace"])
def test_a_save_that_dies_anywhere_keeps_the_previous_checkpoint(tmp_path, monkeypatch, victim):
    save(tmp_path, 10, 20)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        where = {"save": "torch.save", "write_json": "train.runs.checkpoint.write_json"}.get(victim, f"os.{victim}")
        patch.setattr(where, dies)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 30)
    assert latest(tmp_path) == 20
    save(tmp_path, 30)
    assert latest(tmp_path) == 30


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    save(tmp_path, 10, 20, 30, 40, keep=keep)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [10, 20, 30, 40][-keep:]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_besides_the_last_and_marked_as_best(tmp_path, keep):
    save(tmp_path, 10, 20, 30, 40, 50, keep=keep, best=(20,))
    assert names(tmp_path) == ["step_00000020_best", *["step_00000040", "step_00000050"][-keep:]]
    assert latest(tmp_path) == 50


def test_a_former_best_is_one_of_the_last_or_goes(tmp_path):
    save(tmp_path, 10, 20, 30, keep=2, best=(10, 20))
    assert names(tmp_path) == ["step_00000020_best", "step_00000030"]
    save(tmp_path, 40, keep=2, best=(40,))
    assert names(tmp_path) == ["step_00000020_best", "step_00000030", "step_00000040_best"]
    save(tmp_path, 50, keep=2)
    assert names(tmp_path) == ["step_00000040_best", "step_00000050"]
    save(tmp_path, 60, keep=3, best=(60,))
    save(tmp_path, 70, keep=3)
    assert names(tmp_path) == ["step_00000050", "step_00000060_best", "step_00000070"]
    assert latest(tmp_path) == 70


def test_the_former_best_stays_best_if_the_new_best_is_damaged(tmp_path):
    save(tmp_path, 20, 30, 35, keep=2, best=(20, 35))
    (tmp_path / "step_00000035_best" / "state.pt").write_bytes(b"")
    assert go_on(tmp_path) == 30
    assert names(tmp_path) == ["damaged_step_00000035_best", "step_00000020_best", "step_00000030"]
    save(tmp_path, 40, keep=2)
    assert names(tmp_path) == ["step_00000020_best", "step_00000030", "step_00000040"]
    save(tmp_path, 50, 60, keep=2)
    assert names(tmp_path) == ["step_00000020_best", "step_00000050", "step_00000060"]


def test_the_newest_intact_checkpoint_is_loaded_best_or_not(tmp_path):
    save(tmp_path, 10, 20, 30, best=(20,))
    assert load_latest(tmp_path).path.name == "step_00000030"
    damage(tmp_path, 30, "truncated")
    assert load_latest(tmp_path).path.name == "step_00000020_best"


def test_a_kill_between_two_bests_leaves_one_after_the_next_save(tmp_path):
    save(tmp_path, 10, best=(10,))
    save(tmp_path, 20)
    (tmp_path / "step_00000020").rename(tmp_path / "step_00000020_best")
    assert latest(tmp_path) == 20
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["step_00000020_best", "step_00000030"]


# ---- a full disk


Usage = namedtuple("Usage", "total used free")
FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def largest_file(size):
    """Writing beyond this many bytes fails, as it does on a full disk; in earnest, by the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_a_full_disk_stops_a_save_and_keeps_the_last_checkpoint(tmp_path, part):
    save(tmp_path, 10)
    state = {"model": {name: torch.randn(20_000) for name in "abcde"}}
    whole = save_checkpoint(tmp_path / "elsewhere", 20, state, 1) / "state.pt"
    before = names(tmp_path)
    with largest_file(int(part * whole.stat().st_size)), pytest.raises(UserError) as caught:
        save_checkpoint(tmp_path, 20, state, 1)
    assert "step_00000020: cannot be saved (File too large)" in str(caught.value)
    assert f"the last good checkpoint is {tmp_path / 'step_00000010'}" in str(caught.value)
    assert names(tmp_path) == before
    assert latest(tmp_path) == 10


@pytest.mark.parametrize("victim", ["os.fsync", "os.replace", "train.base.files.os.replace", "pathlib.Path.mkdir"])
def test_a_save_without_space_says_so_and_leaves_nothing_behind(tmp_path, monkeypatch, victim):
    save(tmp_path, 10, 20)

    def full(*args, **kwargs):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(victim, full)
        with pytest.raises(UserError, match=r"cannot be saved \(.*No space left on device"):
            save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["step_00000010", "step_00000020"]
    save(tmp_path, 30)
    assert latest(tmp_path) == 30


def test_an_error_of_ours_in_a_save_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.save", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        save(tmp_path, 10)
    assert names(tmp_path) == []


def test_without_a_checkpoint_that_is_said(tmp_path):
    assert last_good(tmp_path) == f"there is no checkpoint in {tmp_path} yet"
    save(tmp_path, 10, 20)
    assert last_good(tmp_path) == f"the last good checkpoint is {tmp_path / 'step_00000020'}"
    damage(tmp_path, 20, "one bit")
    assert last_good(tmp_path) == f"the last good checkpoint is {tmp_path / 'step_00000010'}"


# ---- what is damaged, and what is not ours


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_checkpoint_never_counts_as_kept(tmp_path, keep):
    """The run went on from 20, since 30 was damaged; what it now saves must not give way to 30."""
    save(tmp_path, 20, 30)
    damage(tmp_path, 30, "truncated")
    assert go_on(tmp_path) == 20
    save(tmp_path, 25, keep=keep)
    assert names(tmp_path) == ["step_00000020", "step_00000025"][-keep:]
    assert latest(tmp_path) == 25


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved(tmp_path):
    save(tmp_path, 10, 20)
    damage(tmp_path, 20, "one bit")
    assert go_on(tmp_path) == 10
    save(tmp_path, 20)
    assert latest(tmp_path) == 20


def test_what_is_not_a_checkpoint_is_neither_loaded_nor_removed(tmp_path):
    save(tmp_path, 10)
    others = ["step_00000010 copy", "step_x", "notes.txt"]
    shutil.copytree(tmp_path / "step_00000010", tmp_path / others[0])
    (tmp_path / others[1]).mkdir()
    (tmp_path / others[2]).write_text("mine")
    save(tmp_path, 20, keep=1)
    assert names(tmp_path) == sorted([*others, "step_00000020"])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path, legacy):
    proof, folder = tmp_path / "ran", tmp_path / "checkpoints"
    save(folder, 10, 20)
    state = folder / "step_00000020" / "state.pt"
    torch.save({"step": 20, "state": Bomb(proof)}, state, _use_new_zipfile_serialization=not legacy)
    write_json(state.with_name("checksum.json"), {"state.pt": hashlib.sha256(state.read_bytes()).hexdigest()})
    assert latest(folder) == 10
    assert not proof.exists()
    torch.load(state, weights_only=False)  # the file does carry code: this is what must not happen
    assert proof.exists()


# ---- room on the disk, before the first step


@pytest.fixture
def disk(monkeypatch):
    """Pretend that so many bytes are free."""

    def pretend(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))

    return pretend


def training(folder, keep=2):
    return tiny(f"ldm_training.output_dir={folder}", f"ldm_training.keep_checkpoints={keep}").ldm_training


@pytest.mark.parametrize("adversary", [[], [nn.Parameter(torch.zeros(150)), nn.Parameter(torch.zeros(5, 10))]])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_disk_needs_room_for_all_checkpoints_and_the_model(tmp_path, disk, keep, adversary):
    """An adversary has no moving average."""
    model = nn.Linear(1000, 5, bias=False)
    one = 4 * 20_000 + (3 * 800 if adversary else 0)
    needed = one * (keep + 2) + 20_000
    disk(needed)
    require_disk(training(tmp_path / "not" / "there", keep), model, adversary)
    disk(needed - 1)
    with pytest.raises(UserError, match=rf"{keep + 2} checkpoints and the model need .* are free"):
        require_disk(training(tmp_path, keep), model, adversary)


def test_a_real_checkpoint_is_hardly_larger_than_the_room_asked(tmp_path, disk):
    model = nn.Linear(1000, 50, bias=False)
    state = {name: {"weight": torch.zeros(50, 1000)} for name in ("model", "ema", "moments", "squares")}
    path = save_checkpoint(tmp_path, 1, state, keep=1)
    size = sum(file.stat().st_size for file in path.iterdir())
    asked = 4 * 4 * sum(p.numel() for p in model.parameters())
    assert asked < size < 1.02 * asked


def test_room_that_the_run_already_uses_is_not_asked_for_again(tmp_path, disk):
    model = nn.Linear(1000, 5, bias=False)
    for step in (1, 2):
        (tmp_path / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        (tmp_path / f"checkpoints/step_{step:08d}/state.pt").write_bytes(bytes(80_000))
    disk(2 * 80_000 + 20_000)
    require_disk(training(tmp_path), model)


def test_what_is_less_than_a_gibibyte_is_said_in_mebibytes(tmp_path, disk):
    disk(3 * 2**20)
    with pytest.raises(UserError, match=r"need 31\.1 MiB, 3\.0 MiB are free"):
        require_disk(training(tmp_path), nn.Linear(1000, 480, bias=False))
    disk(3 * 2**30)
    assert require_disk(training(tmp_path), nn.Linear(1000, 480, bias=False)).endswith(" of 3.0 GiB free")


def test_a_hash_of_all_pixels_of_a_run_of_before_is_no_refusal():
    now = Unchanged({"data": 32 * "a", "VAE": 64 * "b"}, {})
    now.load_state_dict({"data": 64 * "c", "VAE": 64 * "b"})
    for saved in ({"data": 32 * "c", "VAE": 64 * "b"}, {"data": 32 * "a", "VAE": 64 * "c"}):
        with pytest.raises(UserError, match="is not what this run began with"):
            now.load_state_dict(saved)
