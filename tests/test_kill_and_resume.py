"""The commands themselves, killed and asked to stop from outside: tests/kill_and_resume.py in short."""

import os
import signal
import time

import pytest

from tests.kill_and_resume import assert_same_end, commands, finish, start, trial, undisturbed
from train.runs.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def arguments(folder) -> dict[str, list[str]]:
    return commands(folder, epochs=3)


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_training_that_is_killed_again_and_again_ends_in_the_bytes_of_one_that_never_was(folder, arguments, stage):
    where = trial(stage, arguments[stage], folder / stage, kills=3, seed=1)
    assert sum(count for place, count in where.items() if not place.startswith("runs")) == 3


@pytest.mark.parametrize(("stage", "number"), [("vae", signal.SIGTERM), ("ldm", signal.SIGINT)])
def test_a_command_that_gets_a_signal_saves_says_so_and_goes_on_to_the_same_end(folder, arguments, stage, number):
    stopped = folder / f"{stage}_stopped"
    process = start(stage, arguments[stage], stopped)
    while not list_checkpoints(stopped / "run/checkpoints"):
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert f"{number.name}: saved after step" in (stopped / "output.txt").read_text()
    assert not (stopped / "run/final_model").exists()
    assert_same_end(folder / stage / "whole", undisturbed(stage, arguments[stage], stopped))


def test_the_comparison_sees_a_difference(folder, arguments):
    other = undisturbed("ldm", [*arguments["ldm"], "--set", "seed=1"], folder / "other_seed")
    with pytest.raises(AssertionError):
        assert_same_end(folder / "ldm" / "whole", other)


def test_a_run_that_fails_is_not_taken_for_one_that_came_to_its_end(folder, arguments):
    failing = folder / "failing"
    with pytest.raises(AssertionError, match="exit code 2"):
        finish(start("ldm", [*arguments["ldm"], "--set", "user_encoder.num_users=9"], failing), failing)
