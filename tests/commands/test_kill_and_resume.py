"""The commands themselves, killed and asked to stop from outside: tests/commands/kill_and_resume.py in short."""

import os
import signal
import time
from dataclasses import replace

import pytest

from tests.commands.kill_and_resume import Command, assert_no_mixture, assert_same_end, commands, trial, undisturbed
from tests.commands.killing import start
from train.runs.checkpoint import list_checkpoints, load_latest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def killed(folder) -> dict[str, Command]:
    return commands(folder, epochs=3)


@pytest.mark.parametrize("what", ["vae", "ldm", "simulate_in_place"])
def test_a_command_killed_repeatedly_ends_in_the_same_bytes(folder, killed, what):
    assert trial(killed[what], folder / what, kills=3, seed=1).total() == 3
    if what in ("vae", "ldm"):
        state = load_latest(folder / what / "whole/run/checkpoints").state
        assert "adversary" in state if what == "vae" else "scale" in state["scaler"]  # what the bytes are also of


def test_a_model_killed_among_renames_is_one_or_the_other_or_none(folder, killed):
    command, whole = killed["last_save"], folder / "last_save"
    changes = undisturbed(command, whole).changes
    away, there = (changes.index(f"os.rename run/{name}") + 1 for name in ("final_model", ".final_model.tmp"))
    for change in (away, there, there + 1):
        place = folder / f"last_save_{change}"
        command.begin(place)
        assert start(command.name, command.arguments, place, kill_before=change).was_killed
        assert_no_mixture(command, whole, place)
        undisturbed(command, place)
        assert_same_end(command, whole, place)


@pytest.mark.parametrize(
    ("what", "number"), [("vae", signal.SIGTERM), ("ldm", signal.SIGINT), ("vae", signal.SIGHUP)]
)
def test_a_command_saves_on_a_signal_and_resumes_to_the_same_end(folder, killed, what, number):
    command, stopped = killed[what], folder / f"{what}_{number.name}"
    running = start(command.name, command.arguments, stopped)
    while not list_checkpoints(stopped / "run/checkpoints"):
        time.sleep(0.001)
    os.kill(running.process.pid, number)
    running.process.join(60)
    assert running.process.exitcode == 128 + number
    assert f"{number.name}: saved after step" in (stopped / "output.txt").read_text()
    assert not (stopped / "run/final_model").exists()
    undisturbed(command, stopped)
    assert_same_end(command, folder / what / "whole", stopped)


def test_the_comparison_sees_a_difference(folder, killed):
    other = replace(killed["ldm"], arguments=[*killed["ldm"].arguments, "--set", "seed=1"])
    undisturbed(other, folder / "other_seed")
    with pytest.raises(AssertionError):
        assert_same_end(other, folder / "ldm/whole", folder / "other_seed")


def test_a_mixture_of_two_models_is_seen(folder, killed):
    command, mixed = killed["last_save"], folder / "mixed"
    command.begin(mixed)
    (mixed / "run/final_model/users.json").write_text("{}")
    with pytest.raises(AssertionError, match="a mixture can be read"):
        assert_no_mixture(command, folder / "last_save", mixed)


def test_a_run_that_fails_is_not_taken_for_a_finished_one(folder, killed):
    arguments = [*killed["ldm"].arguments, "--set", "user_encoder.num_users=9"]
    with pytest.raises(AssertionError, match="exit code 2"):
        start("ldm", arguments, folder / "failing").finish()
