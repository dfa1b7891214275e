"""From Python: images to a verdict and to a data set, as the commands make them; and a script for torchrun."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tiny import PATH, USERS, make_images
from train import augment as augment_command
from train import evaluate as evaluate_command
from train.api import UserDiffusion, UserError, augment, evaluate, train_ldm, train_vae
from train.base.errors import BadArgument
from train.judge import purpose

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    changes = {"data.dir": make_images(folder / "data"), "vae_training.output_dir": folder / "v"}
    first = train_vae(PATH, changes | {"vae_training.num_steps": 2})
    ldm = {"latents.vae_path": first.model, "ldm_training.output_dir": folder / "l", "ldm_training.num_steps": 2}
    train_ldm(PATH, changes | ldm)
    return folder


@pytest.fixture
def model(trained, tmp_path, monkeypatch) -> Path:
    """A copy, beside which nothing has been made; the search for what serves a classifier finds mixing at once."""
    monkeypatch.setattr(purpose, "choose_now", lambda *_: {"guidance": 1.5, "mix_above": 3.0})
    return shutil.copytree(trained / "l/final_model", tmp_path / "l/final_model")


@pytest.mark.usefixtures("short_judgement")
def test_a_verdict_from_python_is_that_of_the_command(model, tmp_path, capsys):
    images = make_images(tmp_path / "made", 2)
    found = evaluate(model, images=images, quick=True)
    assert found.page == found.folder / "report.html"
    assert found.page.is_file()
    assert found.figures == json.loads((found.folder / "evaluation.json").read_text())
    assert found.verdict == {"held_out": found.figures["results"]["held_out"]["verdict"]["sentence"]}
    assert capsys.readouterr().out.splitlines()[0].startswith("judging: at most")
    evaluate_command.main(["--model", str(model), "--images", str(images), "--quick"])
    said = capsys.readouterr().out
    assert "nothing has changed since" in said
    assert said.endswith(f"\n{found}\n")


def test_a_data_set_from_python_is_that_of_the_command(model, capsys):
    made = augment(model, {"sampling.steps": 2}, per_user=2)
    assert Counter((row["user"], row["kind"]) for row in made.manifest) == {
        (user, kind): count for user in USERS for kind, count in (("real", 6), ("generated", 2))
    }
    assert {row["file"] for row in made.manifest} == {path.relative_to(made.folder).as_posix()
                                                      for path in made.folder.glob("*/*")}  # fmt: skip
    assert (made.left_out, made.judgement, made.images.parent) == ([], None, model.parent / "generated")
    assert "do they help?" in made.said[-1]
    capsys.readouterr()
    augment_command.main(["--model", str(model), "--per_user", "2", "--steps", "2"])
    assert capsys.readouterr().out.endswith(f"{made}\n")
    assert UserDiffusion.load(model).write(per_user=2, steps=2, purpose="augment").there == 6


def test_the_guidance_that_is_named_is_the_one_taken(model):
    named = ({"changes": {"sampling.guidance": 2}}, {"changes": {"sampling": {"guidance": 2.0}}}, {"guidance": 2})
    made = [augment(model, per_user=1, steps=2, **how) for how in named]
    assert len({one.folder for one in made}) == 1
    assert {row["guidance"] for row in made[0].manifest} == {"", "2.0"}
    assert {row["mix_above"] for row in augment(model, per_user=1, steps=2).manifest} == {"", "3.0"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: evaluate(model, seed=-1), "^seed -1: must be at least 0"),
        (lambda model: evaluate(model, images=model.parents[1] / "data", test_dir="none"), "^test_dir none: no such"),
        (lambda model: augment(model, per_user=0), "^per_user 0: must be at least 1"),
        (lambda model: augment(model, per_user=1.5), "^per_user 1.5: must be a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_of_the_argument(model, tmp_path, call, said):
    make_images(tmp_path / "data", 2)
    with pytest.raises(BadArgument, match=said):
        call(model)


def test_where_there_is_no_model_both_say_so():
    for call in (evaluate, augment):
        with pytest.raises(UserError, match="nowhere: there is no trained LDM here"):
            call("nowhere")


SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from train.api import Stopped, UserDiffusion, augment, evaluate, train_ldm, train_vae
from train.judge import evaluation, network

torch.set_num_threads(1)
network.LEAST_STEPS = network.MOST_STEPS = 8
evaluation.SEEDS = evaluation.QUICK_SEEDS = 1
config, data, folder = sys.argv[1:]
changes = {"data.dir": data, "vae_training": {"output_dir": f"{folder}/v", "num_steps": 2}}
try:
    train_vae(config, changes | {"vae_training.max_hours": 1e-9})
except Stopped:
    vae = train_vae(config, changes)
changes |= {"latents.vae_path": vae.model, "ldm_training.output_dir": f"{folder}/l", "ldm_training.num_steps": 2}
ldm = train_ldm(config, changes)
made = augment(ldm.model, per_user=1, steps=2)
written = UserDiffusion.load(ldm.model).write(per_user=1, steps=2, purpose="augment")
found = evaluate(ldm.model, images=made.images, quick=True)
returned = f"{ldm.last['step']} {len(made.manifest)} {written.there} {list(found.verdict)}"
Path(folder, "returned_" + os.environ["RANK"]).write_text(returned)
"""


def test_a_script_that_torchrun_starts_does_it_all_in_two(trained, tmp_path):
    """And the guidance, which judges choose; what only the first process does, the other one is told."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(PATH), str(trained / "data"), str(tmp_path)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number in range(2):
        assert (tmp_path / f"returned_{number}").read_text() == "2 21 3 ['held_out']"
    assert done.stdout.count("LDM: 3 users;") == 1
