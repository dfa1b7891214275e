"""A checkpoint is whole and true, or it is named and the one before it is used."""

import errno
import hashlib
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from train.base.errors import UserError
from train.base.files import load_tensors, write_json
from train.runs.checkpoint import last_good, list_checkpoints, load_latest, save_checkpoint, set_aside_later


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
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, capsys, how):
    save(tmp_path, 10, 20, 30)
    damage(tmp_path, 30, how)
    assert latest(tmp_path) == 20
    assert "step_00000030" in capsys.readouterr().err


def test_two_damaged_ones_are_passed_over(tmp_path):
    save(tmp_path, 10, 20, 30)
    damage(tmp_path, 30, "truncated")
    damage(tmp_path, 20, "one bit")
    assert latest(tmp_path) == 10


def test_where_all_are_damaged_the_run_is_not_silently_started_over(tmp_path):
    save(tmp_path, 10, 20)
    damage(tmp_path, 10, "one bit")
    damage(tmp_path, 20, "truncated")
    with pytest.raises(UserError, match="no checkpoint in it is whole"):
        load_latest(tmp_path)
    assert names(tmp_path) == ["step_00000010", "step_00000020"]


def test_the_temporary_folder_of_a_killed_process_is_ignored_and_then_cleared(tmp_path):
    save(tmp_path, 10)
    leftover = tmp_path / ".step_00000020.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half a file")
    assert latest(tmp_path) == 10
    save(tmp_path, 15)
    assert names(tmp_path) == ["step_00000010", "step_00000015"]


@pytest.mark.parametrize("victim", ["save", "fsync", "write_json", "replace"])
def test_a_save_that_dies_anywhere_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, victim):
    save(tmp_path, 10, 20)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        where = {"save": "torch.save", "write_json": "train.checkpoint.write_json"}.get(victim, f"os.{victim}")
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
def test_the_best_is_kept_besides_the_last_and_can_be_told_from_them(tmp_path, keep):
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


def test_the_former_best_stays_the_best_where_the_new_one_is_damaged(tmp_path):
    save(tmp_path, 20, 30, 35, keep=2, best=(20, 35))
    (tmp_path / "step_00000035_best" / "state.pt").write_bytes(b"")
    assert go_on(tmp_path) == 30
    assert names(tmp_path) == ["damaged_step_00000035_best", "step_00000020_best", "step_00000030"]
    save(tmp_path, 40, keep=2)
    assert names(tmp_path) == ["step_00000020_best", "step_00000030", "step_00000040"]
    save(tmp_path, 50, 60, keep=2)
    assert names(tmp_path) == ["step_00000020_best", "step_00000050", "step_00000060"]


def test_a_run_resumes_from_the_newest_and_from_the_best_only_where_that_is_it(tmp_path):
    save(tmp_path, 10, 20, 30, best=(20,))
    assert load_latest(tmp_path).path.name == "step_00000030"
    damage(tmp_path, 30, "truncated")
    assert load_latest(tmp_path).path.name == "step_00000020_best"


def test_a_kill_between_a_new_best_and_the_end_of_the_former_leaves_one_best_after_the_next_save(tmp_path):
    save(tmp_path, 10, best=(10,))
    save(tmp_path, 20)
    (tmp_path / "step_00000020").rename(tmp_path / "step_00000020_best")
    assert latest(tmp_path) == 20
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["step_00000020_best", "step_00000030"]


# ---- a full disk


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
def test_a_disk_that_is_full_at_any_byte_stops_the_save_and_not_the_checkpoint_before_it(tmp_path, part):
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
def test_no_space_left_anywhere_in_a_save_is_said_and_leaves_nothing_half_done(tmp_path, monkeypatch, victim):
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
def test_a_damaged_newer_checkpoint_never_counts_as_one_that_is_kept(tmp_path, keep):
    """The run went on from 20, since 30 was damaged; what it now saves must not give way to 30."""
    save(tmp_path, 20, 30)
    damage(tmp_path, 30, "truncated")
    assert go_on(tmp_path) == 20
    save(tmp_path, 25, keep=keep)
    assert names(tmp_path) == ["step_00000020", "step_00000025"][-keep:]
    assert latest(tmp_path) == 25


def test_a_damaged_checkpoint_is_replaced_by_the_same_step_saved_again(tmp_path):
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
def test_a_checkpoint_that_carries_code_is_refused_and_runs_nothing(tmp_path, legacy):
    proof, folder = tmp_path / "ran", tmp_path / "checkpoints"
    save(folder, 10, 20)
    state = folder / "step_00000020" / "state.pt"
    torch.save({"step": 20, "state": Bomb(proof)}, state, _use_new_zipfile_serialization=not legacy)
    write_json(state.with_name("checksum.json"), {"state.pt": hashlib.sha256(state.read_bytes()).hexdigest()})
    assert latest(folder) == 10
    assert not proof.exists()
    torch.load(state, weights_only=False)  # the file does carry code: this is what must not happen
    assert proof.exists()


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
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 9
    assert [p.name for p in tmp_path.iterdir()] != []
    write_json(path, {"whole": True})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_no_damage_to_a_file_of_tensors_ends_in_anything_but_a_sentence(tmp_path):
    """Bytes changed at random and cut off, seeded: UserError, or tensors."""
    chance = random.Random(0)
    path = tmp_path / "x.bin"
    for legacy in (False, True):
        torch.save({"a": torch.randn(3), "n": [1, None]}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(chance.choice([1, 2, 8])):
                content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
            with suppress(UserError):
                load_tensors(path)


@pytest.mark.parametrize("value", [[torch.zeros(2)], torch.zeros(2), "text", None])
def test_a_file_that_holds_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"x\.bin: must hold a dictionary of tensors"):
        load_tensors(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello", b'{"a": 1}', pickle.dumps({"a": 1})])
def test_a_file_that_torch_has_not_written_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*x\.bin: [^\n]+$"):
        load_tensors(tmp_path / "x.bin")
