"""A run of a stage: all is looked at before anything is written, and what is refused leaves its folder as it was."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny, tiny_images
from train.base.errors import Stopped, UserError
from train.config.schema import Config
from train.engine.run import prepared
from train.engine.stopping import WISHES
from train.stages.vae import VAEStage

CPU, USERS = torch.device("cpu"), 3


def config_of(folder: Path, *settings: str) -> Config:
    return tiny(f"vae_training.output_dir={folder}", "vae_training.num_epochs=1", *settings)


def run(config: Config, stage: type[VAEStage] = VAEStage, plan=None, watch=None) -> None:
    with prepared(stage, config, plan or (lambda *_: 4), watch or (lambda *_: lambda: None)) as (trainer, look):
        trainer.run(look)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _images_on_the_cpu(monkeypatch):
    monkeypatch.setattr("train.engine.run.pick_device", lambda: CPU)
    monkeypatch.setattr("train.stages.vae.load_images", lambda _: tiny_images(users=USERS))


def spoil_split(folder: Path) -> None:
    split = json.loads((folder / "split.json").read_text())
    split["train"][0] = "ID0/gone.png"
    (folder / "split.json").write_text(json.dumps(split))


REFUSALS = {
    "another config": (["seed=1"], "seed was 0, is 1"),
    "a split that does not fit": ([], "split.json"),
    "a full disk": (["vae_training.keep_checkpoints=9"], "lower keep_checkpoints"),
    "a plan that does not fit": ([], "no memory for it"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_run_that_is_refused_leaves_its_folder_as_it_was(tmp_path, monkeypatch, what):
    def plan(*_) -> int:
        if what == "a plan that does not fit":
            raise UserError("no memory for it")
        return 4

    run(config_of(tmp_path))
    if what == "a split that does not fit":
        spoil_split(tmp_path)
    elif what == "a full disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    before = contents(tmp_path)
    settings, words = REFUSALS[what]
    with pytest.raises(UserError, match=words):
        run(config_of(tmp_path, "vae_training.save_interval=1", *settings), plan=plan)
    assert contents(tmp_path) == before


def test_nothing_is_written_before_all_is_known_to_fit(tmp_path):
    """When the run begins, config and split are there; before, an empty folder with its lock at most."""
    folder, seen = tmp_path / "run", []

    def look(where: str) -> None:
        there = folder.rglob("*") if folder.exists() else ()
        seen.append((where, sorted(path.name for path in there if path.is_file())))

    class Watched(VAEStage):
        def build(self, *args) -> None:
            look("build")
            super().build(*args)

        def choose_split(self, folder: Path) -> None:
            super().choose_split(folder)
            look("split")

        def inputs(self) -> dict[str, str]:
            look("resume")
            return super().inputs()

        def begin(self, folder: Path) -> None:
            look("begin")

    run(config_of(folder), Watched, plan=lambda *_: look("plan") or 4)
    assert [where for where, _ in seen] == ["plan", "build", "split", "resume", "begin"]
    assert [files for _, files in seen] == [[], [], [], [".lock"], [".lock", "config.yaml", "split.json"]]


def test_the_plan_knows_the_models_and_users_that_are_there(tmp_path):
    asked = []

    class Narrower(VAEStage):
        @property
        def actual_config(self) -> Config:
            return replace(self.config, seed=77)

    run(config_of(tmp_path), Narrower, plan=lambda *args: asked.append(args) or 4)
    ((config, *others),) = asked
    assert (config.seed, *others) == (77, "vae", USERS, CPU)


def test_a_run_watches_memory_after_each_step_and_exports_once(tmp_path, capsys):
    watched, exported = [], []

    class Exporting(VAEStage):
        def export(self, vae) -> str:
            exported.append(watched.copy())
            return "exported"

    def watch(trainer, precision):
        assert precision == "no"
        return lambda: watched.append(trainer.step)

    for steps in ([1, 2], []):  # the second time there is no step left
        watched.clear()
        run(config_of(tmp_path), Exporting, watch=watch)
        assert exported.pop() == watched == steps
        assert exported == []
        said = capsys.readouterr().out
        assert "3 users; 6 images to train with, 3 to validate with, 3 of other" in said
        assert "; 2 steps on cpu" in said
        assert said.endswith("exported\n")


@pytest.mark.parametrize("number", WISHES)
@pytest.mark.parametrize("when", ["begin", "export"])
def test_a_signal_before_or_after_the_steps_is_answered(tmp_path, capsys, when, number):
    """As while latents are encoded, or the scale of a VAE's is measured; what was left undone is done next time."""
    asked = []

    def ask(method: str) -> None:
        if method == when and not asked:
            asked.append(method)
            signal.raise_signal(number)
            pytest.fail("it went on")

    class Asked(VAEStage):
        def begin(self, folder: Path) -> None:
            ask("begin")

        def export(self, vae) -> str:
            ask("export")
            return "exported"

    said = {"begin": "stopped before step 1; start again", "export": "all 2 steps are saved; start again"}[when]
    with pytest.raises(Stopped, match=f"VAE: {number.name}: {said}") as stopped:
        run(config_of(tmp_path), Asked)
    assert stopped.value.status == 128 + number
    run(config_of(tmp_path), Asked)
    assert capsys.readouterr().out.endswith("exported\n")
