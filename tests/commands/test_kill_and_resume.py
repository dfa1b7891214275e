"""The commands themselves, killed and asked to stop from outside: tests/commands/kill_and_resume.py in short."""

import os
import signal
import time

import pytest

from tests.commands.kill_and_resume import assert_same_end, commands, finish, start, trial, undisturbed
from train.runs.checkpoint import list_checkpoints, load_latest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def arguments(folder) -> dict[str, list[str]]:
    return commands(folder, epochs=3)


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_training_killed_repeatedly_ends_in_the_same_bytes(folder, arguments, stage):
    where = trial(stage, arguments[stage], folder / stage, kills=3, seed=1)
    assert sum(count for place, count in where.items() if not place.startswith("runs")) == 3
    state = load_latest(folder / stage / "whole/run/checkpoints").state
    assert "adversary" in state if stage == "vae" else "scale" in state["scaler"]  # what the bytes are also of


@pytest.mark.parametrize(
    ("stage", "number"), [("vae", signal.SIGTERM), ("ldm", signal.SIGINT), ("vae", signal.SIGHUP)]
)
def test_a_command_saves_on_a_signal_and_resumes_to_the_same_end(folder, arguments, stage, number):
    stopped = folder / f"{stage}_{number.name}"
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


def test_a_run_that_fails_is_not_taken_for_a_finished_one(folder, arguments):
    failing = folder / "failing"
    with pytest.raises(AssertionError, match="exit code 2"):
        finish(start("ldm", [*arguments["ldm"], "--set", "user_encoder.num_users=9"], failing), failing)
