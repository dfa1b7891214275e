"""What Make would run, by `make -n`: it passes on what its user gave, and nothing else."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from train.config.sections import BUILT_IN

ROOT = Path(__file__).parent.parent
SIMULATE = f"python3 -m train.simulate --output_dir {BUILT_IN}"


def make(*arguments: str, makefile: str = f"{ROOT}/Makefile", status: int = 0, **environment: str) -> str:
    """What is printed by Make in a folder where nothing has been made."""
    line = ["make", "-f", makefile, "VENV=", *arguments]
    environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def flags(command: str, *arguments: str, **environment: str) -> list[str]:
    """The words that `python -m train.command` gets from Make and the shell."""
    said = make("-s", "PYTHON=printf '%s\\n' python", *arguments, **environment).split("python\n-m\n")
    return next(words.split("\n")[1:-1] for words in said if words.startswith(f"train.{command}\n"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    Path("mine.yaml").write_text("base: medium.yaml\ndata: {dir: /my/images, recording_pattern: ^(day)}\n")


@pytest.mark.parametrize("config", ["configs/demo.yaml", "configs/medium.yaml", "mine.yaml"])
@pytest.mark.parametrize("command", ["vae", "ldm", "check"])
def test_what_the_user_does_not_give_is_left_to_the_config(command, config):
    target = command if command == "check" else f"train-{command}"
    assert not {"--data_dir", "--set"} & set(flags(command, target, f"CONFIG={config}"))


@pytest.mark.parametrize("given", [[], ["DATA=data/simulated"], ["DATA=data/simulated/"], ["DATA=./data/simulated"]])
def test_the_built_in_data_set_is_made_where_it_is_meant(given):
    assert SIMULATE in make("-n", "train-vae", *given)


@pytest.mark.parametrize("given", ["DATA=/my/images", "CONFIG=mine.yaml", "DATA=simulated"])
def test_the_built_in_data_set_is_not_made_if_another_is_meant(given):
    assert SIMULATE not in make("-n", "train-vae", given)


def test_paths_with_spaces_and_quoted_patterns_are_not_changed():
    Path("my own.yaml").touch()
    given = ["DATA=/my own/images", "RECORDING=it's", "CONFIG=my own.yaml", "OUT=o"]
    assert flags("vae", "train-vae", *given) == [
        "--config", "my own.yaml", "--data_dir", "/my own/images", "--set", "data.recording_pattern=it's",
        "--output_dir", "o/vae",
    ]  # fmt: skip


@pytest.mark.parametrize("environment", [False, True])
def test_a_home_and_variables_are_the_shells_and_the_commands(tmp_path, environment):
    """Make would read `$HOME` as `$H` and `OME`. What a command expands, it gets as it was given."""
    given = {"CONFIG": "~/$NAME.yaml", "DATA": "$HOME/${NAME}s", "OUT": "$HOME/x"}
    home = {"HOME": str(tmp_path), "NAME": "image"}
    arguments = [] if environment else [f"{key}={value}" for key, value in given.items()]
    found = flags("vae", "train-vae", *arguments, **home, **(given if environment else {}))
    assert found == ["--config", "~/$NAME.yaml", "--data_dir", "$HOME/${NAME}s", "--output_dir", f"{tmp_path}/x/vae"]
    assert flags("sample", "sample", "OUT=~/y", **home) == ["--model", f"{tmp_path}/y/ldm/final_model"]
    assert 'OUT is ""' in make("-n", "sample", "OUT=$NOWHERE/x", status=2, **home)


@pytest.mark.parametrize(("given", "config"), [([], "configs/medium.yaml"), (["CONFIG=mine.yaml"], "mine.yaml")])
def test_memcheck_looks_at_medium_unless_told_otherwise(given, config):
    assert flags("memcheck", "memcheck", *given) == ["--config", config]


def test_the_shell_gets_the_recording_pattern_in_the_environment():
    pattern = r"""it's "^(day\d+)_|$(HOME)$"""
    Path("show.mk").write_text(f'include {ROOT}/Makefile\nshow: ; @printf %s "$$RECORDING"\n')
    assert make("show", f"RECORDING={pattern}", makefile="show.mk") == pattern


def test_an_out_with_spaces_is_refused_in_a_sentence():
    said = make("-n", "train-vae", "OUT=my runs", status=2)
    assert 'OUT is "my runs", where Make can make nothing: give an OUT=folder without spaces' in said


def test_a_begun_vae_keeps_its_config_and_gets_no_ldm_arguments():
    begun = Path("o/vae/config.yaml")
    begun.parent.mkdir(parents=True)
    begun.touch()
    given = ["train-ldm", "OUT=o", "ARGS=--num_epochs 7"]
    assert flags("vae", *given) == ["--config", "o/vae/config.yaml", "--output_dir", "o/vae"]
    assert flags("ldm", *given)[-2:] == ["--num_epochs", "7"]
    begun.unlink()
    assert flags("vae", *given)[:2] == ["--config", "configs/demo.yaml"]


@pytest.mark.parametrize("environment", [False, True])
def test_a_vae_that_is_named_is_used_and_none_is_trained(environment):
    given = {"VAE": "~/my own/$NAME"}
    arguments = ["train-ldm", "OUT=o", *([] if environment else ["VAE=~/my own/$NAME"])]
    environment = given if environment else {}
    found = flags("ldm", *arguments, **environment)
    assert found[found.index("--vae_path") + 1] == "~/my own/$NAME"
    assert "train.vae" not in make("-n", *arguments, **environment)
    assert "train.vae" not in make("-n", "train-ldm", "OUT=o", "ARGS=--init_from runs/x/ldm/final_model")
    assert SIMULATE in make("-n", *arguments, **environment)
    own = flags("ldm", "train-ldm", "OUT=o")
    assert own[own.index("--vae_path") + 1] == "o/vae/final_model/"


@pytest.mark.parametrize(("target", "times"), [("train-ldm", "1"), ("evaluate", "4")])
def test_images_are_made_by_the_training_images_and_then_judged(target, times):
    lines = [line for line in make("-n", target, "OUT=o", "ARGS=--x").splitlines() if "o/ldm/final_model" in line]
    sampled, judged = (shlex.split(line)[2:] for line in lines)
    purpose = ["--purpose", "augment", "--per_training_image", times]
    assert sampled == ["train.sample", "--model", "o/ldm/final_model", *purpose]
    arguments = ["--x"] if target == "evaluate" else ["--quick"]
    assert judged == ["train.evaluate", "--model", "o/ldm/final_model", *arguments]


def test_augment_passes_on_what_is_asked_of_it():
    assert flags("augment", "augment", "OUT=o", "ARGS=--per_user 3 --sift") == [
        "--model", "o/ldm/final_model", "--per_user", "3", "--sift",
    ]  # fmt: skip


def test_check_looks_at_the_disk_that_the_run_will_fill():
    found = flags("check", "check", "OUT=o")
    assert found[found.index("--output_dir") + 1] == "o/ldm"


@pytest.mark.parametrize(("succeeds", "runs"), [(True, 4), (False, 1)])
def test_the_portable_tests_run_on_each_until_one_fails(succeeds, runs):
    Path("python").write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS $ATEN_CPU_CAPABILITY $*"\nexit {int(not succeeds)}\n')
    Path("python").chmod(0o755)
    given = ["PYTHON=./python", "VECTORS=default avx2", "ARGS=-k x"]
    said = make("-s", "test-portable", *given, status=0 if succeeds else 2).splitlines()
    wanted = [f"{threads} {vectors} -m pytest -q -k x" for threads in (1, 2) for vectors in ("default", "avx2")]
    assert [line for line in said if "pytest" in line] == wanted[:runs]


def test_help_lists_every_target_that_can_be_asked_for():
    Path("Makefile").symlink_to(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {line.split()[0] for line in make("help").splitlines() if line.strip()} >= set(phony)
