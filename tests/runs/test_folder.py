"""A folder holds one experiment: the same one goes on, any other is refused and nothing is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny, tiny_images
from train.base.errors import UserError
from train.config.schema import Config
from train.config.sections import DataConfig
from train.data.split import Split, make_split, save_split
from train.runs.folder import locked, open_run, save_config, shared_split


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, *args) -> str:
    """The sentence with which `open_run` refuses a folder, whose files are then as before."""
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        open_run(folder, *args)
    assert contents(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stage", ["vae", "ldm"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_new_run_writes_its_resolved_config(tmp_path, stage, exists):
    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)
    config = tiny("seed=7")
    open_run(folder, config, stage)
    assert Config.read(folder / "config.yaml") == config


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_the_same_run_goes_on(tmp_path, stage):
    for _ in range(3):
        open_run(tmp_path, tiny(), stage)


@pytest.mark.parametrize(
    "setting",
    [
        "ldm_training.num_epochs=99",
        "ldm_training.sample_interval=3",
        "ldm_training.save_interval=3",
        "ldm_training.keep_checkpoints=5",
        "ldm_training.max_hours=8.5",
        "ldm_training.auto_batch=true",
        "ldm_training.gradient_checkpointing=true",
        "ldm_training.optimizer.learning_rate=1e-5",
        "ldm_training.output_dir=moved",
        "data.dir=moved",
        "latents.vae_path=moved/final_model",
        "vae_training.batch_size=3",  # of the other stage
        "vae_loss.kl_weight=1",
        "sampling.steps=7",
    ],
)
def test_an_allowed_change_of_config_is_taken_over_and_named(tmp_path, setting, capsys):
    open_run(tmp_path, tiny(), "ldm")
    assert capsys.readouterr().err == ""
    open_run(tmp_path, tiny(setting), "ldm")
    assert Config.read(tmp_path / "config.yaml") == tiny(setting)
    key, said = setting.split("=")[0], capsys.readouterr().err
    matters = not key.startswith(("vae_", "sampling"))  # to the LDM
    assert (f"goes on with another config: {key} was " in said) == matters
    assert said.count("\n") == matters
    open_run(tmp_path, tiny(setting), "ldm")
    assert capsys.readouterr().err == ""


def test_micro_batches_may_change_if_the_batch_stays_the_same(tmp_path, capsys):
    """A step is still of four images: what memory asks for must not end a run."""
    open_run(tmp_path, tiny(), "ldm")
    open_run(tmp_path, tiny("ldm_training.batch_size=2", "ldm_training.gradient_accumulation_steps=2"), "ldm")
    said = capsys.readouterr().err
    assert "batch_size was 4, is 2; ldm_training.gradient_accumulation_steps was 1, is 2" in said


@pytest.mark.parametrize(("schedule", "says"), [("cosine", True), ("constant", False)])
def test_more_epochs_change_a_cosine_learning_rate_and_say_so(tmp_path, capsys, schedule, says):
    same = f"ldm_training.optimizer.lr_schedule={schedule}"
    open_run(tmp_path, tiny(same), "ldm")
    open_run(tmp_path, tiny(same, "ldm_training.num_epochs=9"), "ldm")
    said = capsys.readouterr().err
    assert "num_epochs was 2, is 9" in said
    assert ("the learning rate is from here on that of a run of the new length" in said) == says


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ("num_epochs=2", "num_steps=9", "num_epochs was 2, is None; ldm_training.num_steps was None, is 9"),
        ("num_steps=9", "num_epochs=2", "num_epochs was None, is 2; ldm_training.num_steps was 9, is None"),
        ("num_steps=9", "num_steps=10", "goes on with another config: ldm_training.num_steps was 9, is 10"),
    ],
)
def test_a_run_goes_on_with_another_length_in_epochs_or_steps(tmp_path, capsys, before, now, words):
    open_run(tmp_path, tiny(f"ldm_training.{before}"), "ldm")
    open_run(tmp_path, tiny(f"ldm_training.{now}"), "ldm")
    said = "; the learning rate is from here on that of a run of the new length\n"
    assert capsys.readouterr().err.endswith(f"{words}{said}")
    assert Config.read(tmp_path / "config.yaml") == tiny(f"ldm_training.{now}")


@pytest.mark.parametrize(
    ("stage", "setting", "words"),
    [
        ("ldm", "seed=1", "seed was 0, is 1"),
        ("ldm", "ldm_training.batch_size=2", "ldm_training.batch_size was 4, is 2"),
        ("ldm", "unet.num_heads=4", "unet.num_heads was 2, is 4"),
        ("ldm", "schedule.prediction=noise", "schedule.prediction was 'velocity', is 'noise'"),
        ("ldm", "ldm_training.optimizer.warmup_steps=1", "optimizer.warmup_steps was 2, is 1"),
        ("ldm", "ldm_training.gradient_accumulation_steps=2", "gradient_accumulation_steps was 1, is 2"),
        ("ldm", "ldm_loss.condition_dropout=0", "ldm_loss.condition_dropout was 0.1, is 0.0"),
        ("ldm", "data.seed=3", "data.seed was 0, is 3"),
        ("vae", "vae.channels=[8, 8]", "vae.channels was (8, 16), is (8, 8)"),
        ("vae", "vae_loss.kl_weight=1", "vae_loss.kl_weight was 0.0001, is 1.0"),
        ("vae", "vae_training.mixed_precision=bf16", "mixed_precision was 'no', is 'bf16'"),
    ],
)
def test_a_config_changing_results_is_refused_with_both_values(tmp_path, stage, setting, words):
    open_run(tmp_path, tiny(), stage)
    message = refused(tmp_path, tiny(setting), stage)
    assert words in message
    assert str(tmp_path) in message


def test_many_differences_are_counted_and_not_all_listed(tmp_path):
    open_run(tmp_path, tiny(), "ldm")
    changed = tiny("seed=1", "data.seed=1", "unet.num_heads=4", "ldm_training.batch_size=1")
    assert refused(tmp_path, changed, "ldm").count(" was ") == 3


def test_a_folder_of_the_other_stage_is_refused(tmp_path):
    """Their checkpoints and final models would be one another's."""
    open_run(tmp_path, tiny(), "vae")
    assert "train.vae" in refused(tmp_path, tiny(), "ldm")


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "not the folder of a ldm run" in refused(tmp_path, tiny(), "ldm")


def test_a_folder_with_a_foreign_config_is_refused_and_untouched(tmp_path):
    (tmp_path / "config.yaml").write_text("model: theirs\n")
    assert 'unknown key "model"' in refused(tmp_path, tiny(), "ldm")


@pytest.mark.parametrize("stage", ["vae", "ldm"])
@pytest.mark.parametrize("place", ["final_model", "final_model/new", "final_model/unet/deep/new"])
def test_a_saved_model_is_no_place_for_a_run(tmp_path, stage, place):
    """It holds the config and the split of its run, and would pass for the run's folder."""
    config, data, run = tiny(), tiny_images(), tmp_path / "run"
    open_run(run, config, stage)
    save_split(run / "split.json", make_split(data, config.data), data, config.data)
    save_split(run / "final_model/split.json", make_split(data, config.data), data, config.data)
    save_config(config, run / "final_model")
    (run / "final_model" / ("config.json" if stage == "vae" else "users.json")).write_text("{}")
    assert f"is the saved model {run / 'final_model'}, or lies within it" in refused(run / place, config, stage)
    open_run(run, config, stage)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UserError, match="not the folder of a vae run"):
        open_run(path, tiny(), "vae")
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        open_run(tmp_path / "file" / "run", tiny(), "vae")


@pytest.mark.parametrize("place", [".", "out", "a/b", "../data/out"])
def test_an_output_folder_within_the_data_is_refused(tmp_path, place):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(UserError, match=r"lies within data\.dir .*, where it would count as a user; use another out"):
        open_run(tmp_path / "link" / place, tiny(f"data.dir={data}"), "vae")
    assert not any(data.iterdir())
    open_run(tmp_path / "data2", tiny(f"data.dir={data}"), "vae")


HOLD = """if True:
    import sys, time, pathlib
    from train.runs.folder import locked
    with locked(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_folder_is_locked_while_a_process_trains_in_it(tmp_path):
    folder, root = tmp_path / "run", Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="run: another process is training in it; wait for it, or"), locked(folder):
            pass
        with locked(tmp_path / "other"):
            process.kill()
    for _ in range(2):
        with locked(folder):
            open_run(folder, tiny(), "vae")


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path):
        pass


def test_a_split_that_is_there_and_no_file_is_refused(tmp_path):
    data, own, of_vae = tiny_images(), tmp_path / "split.json", tmp_path / "of_vae.json"
    for place in (own, of_vae):
        place.symlink_to("nowhere")
        with pytest.raises(UserError, match=f"{place}: is a link to nowhere; copy the file that it means"):
            shared_split(data, DataConfig(), own, of_vae)
        place.unlink()


def test_a_saved_config_alone_belongs_to_no_command(tmp_path):
    save_config(tiny(), tmp_path)
    assert Config.read(tmp_path / "config.yaml") == tiny()
    assert not (tmp_path / "config.yaml").read_text().startswith("#")


# ---- the split that stages share


def test_a_run_uses_its_own_split_or_its_vaes_before_a_new_one(tmp_path):
    data, config = tiny_images(), DataConfig()
    rows = torch.arange(12)
    own, of_vae = Split(rows[:9], rows[9:10], rows[10:]), Split(rows[3:], rows[2:3], rows[:2])
    new = make_split(data, config)
    run, vae = tmp_path / "run", tmp_path / "vae"

    assert torch.equal(shared_split(data, config, run / "split.json", vae / "split.json").held_out, new.held_out)
    save_split(vae / "split.json", of_vae, data, config)
    assert torch.equal(shared_split(data, config, tmp_path / "none", vae / "split.json").held_out, of_vae.held_out)
    save_split(run / "split.json", own, data, config)
    assert torch.equal(shared_split(data, config, run / "split.json", vae / "split.json").held_out, own.held_out)


def test_to_choose_a_split_writes_nothing(tmp_path):
    shared_split(tiny_images(), DataConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
