"""The commands, from a folder of images to a judged folder of generated ones, on a very small experiment."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.float64 import float64
from tests.oracle import assert_equal_outputs, diffusers
from tests.tiny import USERS, make_images, tiny, tiny_vae
from train import augment, check, evaluate, ldm, memcheck, sample, vae
from train.api import training
from train.base.errors import Stopped, UserError
from train.config.load import dump_yaml
from train.config.schema import Config
from train.engine import run, trainer
from train.judge import evaluation
from train.runs import model_folder
from train.runs.checkpoint import load_latest, save_checkpoint
from train.runs.folder import locked
from train.stages import generate

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags(folder: Path, out: str, *more: str) -> list[str]:
    return ["--config", TINY, "--data_dir", str(folder / "data"), "--output_dir", str(folder / out), *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return model_folder.load(folder).state_dict()


def assert_same_weights(a: Path, b: Path) -> None:
    for (name, x), y in zip(weights(a).items(), weights(b).values(), strict=True):
        assert torch.equal(x, y), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with data/, a VAE run in v/ and an LDM run in l/."""
    folder = tmp_path_factory.mktemp("runs")
    make_images(folder / "data")
    vae.main(flags(folder, "v"))
    ldm.main(flags(folder, "l", "--vae-path", str(folder / "v/final_model"), "--sample_interval", "5"))
    return folder


def test_a_run_leaves_its_models_metrics_and_pictures(runs):
    for name in ("config.yaml", "split.json", "metrics.jsonl", "curves.png", "reconstructions.png"):
        assert (runs / "v" / name).is_file(), name
    for name in ("samples/00000005.png", "samples/00000008.png", "metrics.jsonl", "curves.png"):
        assert (runs / "l" / name).is_file(), name
    lines = [json.loads(line) for line in (runs / "l/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8  # 15 training images, 4 in a step, 2 epochs
    assert any("validation_loss" in line for line in lines)
    assert json.loads((runs / "l/final_model/users.json").read_text())["users"] == list(USERS)


def test_every_part_of_a_final_model_opens_in_diffusers(runs):
    model = runs / "l/final_model"
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    autoencoder = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(model, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    ours = model_folder.load(model / "unet", UNet2DConditionModel)
    with float64(), torch.no_grad():
        x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 1, 12)
        assert_equal_outputs(ours.double()(x, 3, context), unet.double()(x, 3, context).sample)
    statistics = json.loads((runs / "v/final_model/latent_statistics.json").read_text())
    assert autoencoder.config.scaling_factor == statistics["scaling_factor"]
    assert statistics["images"] == 15


def test_vae_and_ldm_share_one_split(runs):
    splits = [(runs / place / "split.json").read_text() for place in ("v", "v/final_model", "l", "l/final_model")]
    assert len(set(splits)) == 1


def test_check_says_yes_to_what_fits_and_no_to_what_does_not(runs, capsys):
    path = ["--vae_path", str(runs / "v/final_model")]
    assert check.main(flags(runs, "new", *path)) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert check.main(flags(runs, "new", *path, "--set", "user_encoder.num_users=5")) == 1
    assert "3 users, but user_encoder.num_users is 5" in capsys.readouterr().out
    assert check.main(flags(runs, "new", "--vae_path", str(runs / "nowhere"))) == 1
    said = capsys.readouterr().out
    assert "FAIL  VAE" in said
    assert [line for line in said.splitlines() if line.startswith("skip")] == [
        f"skip  {name}: needs what failed above"
        for name in ("latents", "models", "training step", "disk", "checkpoint")
    ]
    assert said.endswith("1 of 11 failed: VAE; 5 skipped\n")
    assert not (runs / "new").exists()


def test_check_says_in_a_line_that_memory_runs_out_in_a_step(runs, capsys):
    batch = ["--vae_path", str(runs / "v/final_model"), "--batch_size", str(2**45)]
    assert check.main(flags(runs, "new", *batch)) == 1
    said = capsys.readouterr().out
    assert "FAIL  training step: out of memory: " in said
    assert said.endswith("1 of 11 failed: training step\n")


def test_check_says_no_to_what_the_training_of_the_run_refuses(runs, tmp_path, capsys):
    """And in its words: of the run that is in the folder already."""
    shutil.copytree(runs / "l", tmp_path / "l")
    other = model_folder.load(runs / "v/final_model")
    other.decoder.conv_out.bias.data += 0.1
    model_folder.save(other, tmp_path / "other")
    run = ["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / "l")]
    usual = [*run, "--vae_path", str(runs / "v/final_model")]
    assert check.main(usual) == 0
    assert "goes on after step 8 of 8" in capsys.readouterr().out
    for words in (
        [*usual, "--set", "unet.channels=[8, 8]"], [*run, "--vae_path", str(tmp_path / "other")],
        [*usual, "--num_epochs", "1"], [*usual, "--output_dir", str(runs / "v")],
    ):  # fmt: skip
        before = contents(tmp_path / "l")
        with pytest.raises(UserError) as refused:
            ldm.main(words)
        capsys.readouterr()
        assert check.main(words) == 1
        assert str(refused.value) in capsys.readouterr().out
        assert contents(tmp_path / "l") == before
    with locked(tmp_path / "l"):
        assert check.main(usual) == 1


def test_cached_and_uncached_latents_train_the_same_unet(runs):
    path = ["--vae_path", str(runs / "v/final_model")]
    ldm.main(flags(runs, "uncached", *path, "--set", "latents.cache_latents=false"))
    cached, uncached = weights(runs / "l/final_model/unet"), weights(runs / "uncached/final_model/unet")
    for name, x in cached.items():  # encoded in batches of other sizes, whose sums round differently
        torch.testing.assert_close(uncached[name], x, rtol=1e-3, atol=1e-4)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(runs, tmp_path, monkeypatch, stage):
    train = {"vae": vae.main, "ldm": ldm.main}[stage]
    more = {
        "vae": ["--set", "vae_loss.adversarial_weight=0.5", "--set", "vae_loss.adversarial_start=2",
                "--resolution", "32"],
        "ldm": ["--vae_path", str(runs / "v/final_model")],
    }[stage]

    def arguments(out: str) -> list[str]:
        base = ["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / out)]
        return [*base, "--save_interval", "3", *more]

    def save_and_die(*args):
        save_checkpoint(*args)
        raise Killed

    train(arguments("whole"))
    monkeypatch.setattr(trainer, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(arguments("cut"))
    monkeypatch.undo()
    train(arguments("cut"))
    part = "final_model" if stage == "vae" else "final_model/unet"
    assert_same_weights(tmp_path / "whole" / part, tmp_path / "cut" / part)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_an_average_on_the_cpu_has_the_same_weights_and_pictures(runs):
    flag = ["--set", "vae_training.ema_on_cpu=true", "--set", "ldm_training.ema_on_cpu=true"]
    vae.main(flags(runs, "v_cpu", *flag))
    assert_same_weights(runs / "v_cpu/final_model", runs / "v/final_model")
    path = ["--vae-path", str(runs / "v/final_model"), "--sample_interval", "5"]
    ldm.main(flags(runs, "l_cpu", *path, *flag))
    assert_same_weights(runs / "l_cpu/final_model/unet", runs / "l/final_model/unet")
    for name in ("samples/00000005.png", "samples/00000008.png"):
        assert (runs / "l_cpu" / name).read_bytes() == (runs / "l" / name).read_bytes()


@pytest.mark.parametrize("first_on_cpu", [True, False])
@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_an_fp16_run_goes_on_where_fp16_is_computed_otherwise(runs, tmp_path, monkeypatch, stage, first_on_cpu):
    """As from a CPU to a GPU, and back: the one computes in fp32, the other scales its loss."""
    main, out = {"vae": vae.main, "ldm": ldm.main}[stage], tmp_path / "out"
    more = {"vae": ["--resolution", "32", "--set", "vae_loss.adversarial_weight=0.5"],
            "ldm": ["--vae_path", str(runs / "v/final_model")]}[stage]  # fmt: skip
    both = ("no", "fp16") if first_on_cpu else ("fp16", "no")
    for epochs, precision in zip("12", both, strict=True):
        monkeypatch.setattr(run, "native_precision", lambda device, asked, precision=precision: precision)
        main(["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(out),
              "--mixed_precision", "fp16", "--num_epochs", epochs, *more])  # fmt: skip
    found = load_latest(out / "checkpoints")
    assert found.step == 8
    assert bool(found.state["scaler"]) == first_on_cpu


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_run_prints_the_memory_of_the_precision_it_computes_in(runs, tmp_path, capsys, stage):
    """Which on the CPU is fp32, whatever the config says of a GPU."""
    main, more = {"vae": (vae.main, []), "ldm": (ldm.main, ["--vae_path", str(runs / "v/final_model")])}[stage]
    more = [*more, "--set", f"{stage}_training.batch_size=15"]
    said = []
    for precision in ("no", "fp16"):
        main(["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / precision),
              "--mixed_precision", precision, "--num_epochs", "1", *more])  # fmt: skip
        said.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("Memory: ")])
    assert len(said[0]) == 1
    assert said[0] == said[1]


def test_another_config_does_not_go_on_with_a_run(runs):
    before = (runs / "v/config.yaml").read_text()
    with pytest.raises(UserError, match=r"vae\.channels was \(8, 16\), is \(16, 16\)"):
        vae.main(flags(runs, "v", "--set", "vae.channels=[16, 16]"))
    assert (runs / "v/config.yaml").read_text() == before


def test_a_run_goes_on_whose_config_repeats_what_is_derived(runs, tmp_path):
    """As every config.yaml once did, which had no sampling.batch_size."""
    run = tmp_path / "l"
    shutil.copytree(runs / "l", run)
    text, end = dump_yaml(Config.read(run / "config.yaml")), "  batch_size: 4\n"
    assert "\n  dim: 12\n" in text
    assert text.endswith(end)
    (run / "config.yaml").write_text(text.removesuffix(end))
    ldm.main(["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(run), "--num_epochs", "3",
              "--vae_path", str(runs / "v/final_model"), "--sample_interval", "5"])  # fmt: skip
    assert load_latest(run / "checkpoints").step == 12


def test_a_run_does_not_go_on_with_another_vae_or_other_images(runs, tmp_path):
    ldm.main(flags(runs, "l2", "--vae_path", str(runs / "v/final_model"), "--save_interval", "4"))
    other = tmp_path / "other_vae"
    autoencoder = model_folder.load(runs / "v/final_model")
    with torch.no_grad():
        autoencoder.decoder.conv_out.bias += 0.1
    model_folder.save(autoencoder, other)
    before = (runs / "l2/final_model/unet/config.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="the VAE is not what this run began with"):
        ldm.main(flags(runs, "l2", "--vae_path", str(other), "--num_epochs", "9"))
    repainted = make_images(tmp_path / "repainted")
    Image.new("RGB", (20, 20)).save(repainted / "ID1/0.png")
    with pytest.raises(UserError, match="the data is not what this run began with"):
        ldm.main(flags(runs, "l2", "--vae_path", str(runs / "v/final_model"), "--data_dir", str(repainted)))
    assert (runs / "l2/final_model/unet/config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["trained on", "other channels", "gone"])
def test_a_run_goes_on_with_its_copy_of_a_vae_that_has_changed(runs, tmp_path, what):
    shutil.copytree(runs / "v/final_model", tmp_path / "v")
    train = ["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / "l"), "--vae_path"]
    with pytest.raises(Stopped):
        ldm.main([*train, str(tmp_path / "v"), "--max_hours", "1e-9"])
    shutil.rmtree(tmp_path / "v")
    if what == "trained on":
        changed = model_folder.load(runs / "v/final_model")
        changed.decoder.conv_out.bias.data += 0.1
        model_folder.save(changed, tmp_path / "v")
    elif what == "other channels":
        model_folder.save(tiny_vae(tiny("vae.latent_channels=8")), tmp_path / "v")
    with pytest.raises(UserError) as refused:
        ldm.main([*train, str(tmp_path / "v")])
    copy = tmp_path / "l/begun_with/vae"
    assert str(copy) in str(refused.value)
    ldm.main([*train, str(copy), "--sample_interval", "5"])
    assert_same_weights(tmp_path / "l/final_model/unet", runs / "l/final_model/unet")


@pytest.mark.parametrize("what", ["another VAE", "another scale", "fewer epochs", "fewer steps", "a full disk"])
def test_a_refused_start_leaves_a_finished_run_unchanged(runs, tmp_path, monkeypatch, what):
    run, other, more = tmp_path / "l", tmp_path / "other_vae", ["--learning_rate", "0.5"]
    shutil.copytree(runs / "l", run)
    autoencoder = model_folder.load(runs / "v/final_model")
    if what == "another VAE":
        autoencoder.decoder.conv_out.bias.data += 0.1
    elif what == "another scale":
        autoencoder.config = replace(autoencoder.config, scaling_factor=0.9 * autoencoder.config.scaling_factor)
    elif what == "fewer epochs":
        more += ["--num_epochs", "1"]
    elif what == "fewer steps":
        more += ["--num_steps", "7"]
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        more += ["--set", "ldm_training.keep_checkpoints=9"]
    model_folder.save(autoencoder, other)
    before = contents(run)
    with pytest.raises(UserError, match={
        "another VAE": "the VAE is not what this run began with",
        "another scale": "the VAE is not what this run began with",
        "fewer epochs": "the run has already taken 8 steps, more than the 4 asked for; raise num_epochs",
        "fewer steps": "the run has already taken 8 steps, more than the 7 asked for; raise num_steps",
        "a full disk": "need .* free; lower keep_checkpoints",
    }[what]):  # fmt: skip
        ldm.main(["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(run),
                  "--vae_path", str(other), "--sample_interval", "5", *more])  # fmt: skip
    assert contents(run) == before


@pytest.mark.parametrize("stage", [vae, ldm])
def test_a_disk_that_is_too_small_leaves_no_folder(runs, monkeypatch, stage):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(UserError, match="lower keep_checkpoints"):
        stage.main(flags(runs, "refused", "--vae_path", str(runs / "v/final_model")))
    assert not (runs / "refused").exists()


@pytest.mark.parametrize(("stage", "name"), [(vae, "v"), (ldm, "l")])
def test_a_second_process_in_a_folder_is_refused(runs, stage, name):
    before = contents(runs / name)
    with locked(runs / name), pytest.raises(UserError, match=f"{name}: another process is training in it; wait for it"):
        stage.main(flags(runs, name, "--vae_path", str(runs / "v/final_model"), "--sample_interval", "7"))
    assert contents(runs / name) == before


def test_a_model_without_the_size_of_its_latents_is_not_sampled(runs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(runs / "l/final_model", model)
    config = json.loads((model / "unet/config.json").read_text())
    (model / "unet/config.json").write_text(json.dumps(config | {"sample_size": None}))
    with pytest.raises(UserError, match="the unet's sample_size is None"):
        sample.main(["--model", str(model), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("stage", [vae, ldm])
def test_a_batch_that_is_refused_for_memory_leaves_no_folder(runs, monkeypatch, stage):
    def refuse(*_):
        raise UserError("the memory of this GPU")

    monkeypatch.setattr(training, "plan_micro_batch", refuse)
    with pytest.raises(UserError, match="the memory of this GPU"):
        stage.main(flags(runs, "refused", "--vae_path", str(runs / "v/final_model")))
    assert not (runs / "refused").exists()


@pytest.mark.parametrize("stage", [vae, ldm])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["unet.latent_channels=8", "vae.latent_channels=8"], r"has 4 channels where unet\.latent_channels is 8"),
        (["data.channels=1", "vae.image_channels=1"], r"has 3 channels where data\.channels is 1"),
        (["data.resolution=17", "vae.channels=[8]"], "divides each side by 2, which data.resolution 17 is not a"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(runs, stage, settings, sentence):
    more = [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(UserError, match=f"final_model: the VAE {sentence}"):
        stage.main(flags(runs, "x", "--vae_path", str(runs / "v/final_model"), *more))
    assert not (runs / "x").exists()


@pytest.mark.usefixtures("short_judgement")
def test_samples_are_written_by_user_and_judged(runs, tmp_path, capsys):
    out = tmp_path / "made"
    model = ["--model", str(runs / "l/final_model")]
    common = [*model, "--steps", "3", "--num_images", "2", "--output_dir", str(out)]
    sample.main([*common, "--users", "ID1", "ID10", "--seed", "4"])
    first = (out / "ID1/generated_000.png").read_bytes()
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
        "ID1/generated_000.png", "ID1/generated_001.png", "ID10/generated_000.png", "ID10/generated_001.png", "grid.png"
    ]  # fmt: skip
    sample.main([*common, "--users", "ID2", "ID1", "--seed", "4"])  # the same origin: it adds
    assert (out / "ID1/generated_000.png").read_bytes() == first
    assert "4 images of 2 users" in (said := capsys.readouterr().out)
    assert "(2 there already)" in said
    with pytest.raises(UserError, match="holds images of other seed"):
        sample.main([*common, "--seed", "5"])
    with pytest.raises(UserError, match="holds images of other sampling"):
        sample.main([*common, "--seed", "4", "--sampler", "ddim"])
    evaluate.main([*model, "--images", str(out), "--quick"])
    result = json.loads((out / "evaluation.json").read_text())
    counts = result["data"]
    assert (counts["generated_images"], counts["training_images"], counts["held_out_images"]) == (6, 18, 3)
    said = capsys.readouterr().out
    assert f"\n{result['results']['held_out']['verdict']['sentence']}\n" in said
    assert "Whether the generated images help cannot be told." in (out / "report.html").read_text()


@pytest.mark.usefixtures("short_judgement")
def test_judges_are_asked_again_only_where_something_has_changed(runs, tmp_path, capsys, monkeypatch):
    shutil.copytree(runs / "l/final_model", tmp_path / "l/final_model")
    made = make_images(tmp_path / "made", 2)
    line = ["--model", str(tmp_path / "l/final_model"), "--images", str(made), "--quick"]
    asked, real = [], evaluation.evaluate
    judge = cache(lambda: real(*asked[0]))
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: asked.append(args) or judge())
    evaluate.main(line)
    said, left = capsys.readouterr().out.splitlines(), contents(tmp_path / "l/evaluations")
    evaluate.main(line)
    again = capsys.readouterr().out.splitlines()
    assert "nothing has changed since" in again[0]
    assert again[1:] == said[-len(again) + 1 :]
    assert contents(tmp_path / "l/evaluations") == left
    assert len(asked) == 1
    changed = [lambda: None, lambda: (made / "ID1/0.png").write_bytes((made / "ID2/0.png").read_bytes()),
               lambda: (tmp_path / "l/evaluations/made/evaluation.json").unlink()]  # fmt: skip
    for number, (change, more) in enumerate(zip(changed, (["--seed", "1"], [], []), strict=True)):
        change()
        evaluate.main([*line, *more])
        assert len(asked) == 2 + number


def test_a_stopped_run_leaves_pictures_and_a_model_to_sample_from(runs, tmp_path, capsys):
    shutil.copytree(runs / "v", tmp_path / "v")
    path = ["--vae_path", str(tmp_path / "v/final_model")]
    train = ["--config", TINY, "--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / "l"), *path]
    with pytest.raises(Stopped) as stopped:
        ldm.main([*train, "--max_hours", "1e-9"])
    checkpoint = tmp_path / "l/checkpoints/step_00000001"
    assert f"train.sample --model {checkpoint} makes others" in str(stopped.value)
    assert all((tmp_path / "l" / name).is_file() for name in ("samples/00000001.png", "curves.png"))
    shutil.rmtree(tmp_path / "v")  # the run has a copy of its VAE
    capsys.readouterr()
    sample.main(["--model", str(checkpoint), "--num_images", "1"])
    assert f"3 images of 3 users in {tmp_path}/l/generated/" in capsys.readouterr().out
    augment.main(["--model", str(checkpoint), "--per_user", "1", "--guidance", "1"])
    assert f"the data set is {tmp_path}/l/augmented/" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"no trained LDM here .did you mean {checkpoint}"):
        sample.main(["--model", str(tmp_path / "l/final_model")])


def test_the_last_checkpoint_samples_as_the_final_model_does(runs, tmp_path):
    made = {}
    for name in ("final_model", "checkpoints/step_00000008_best", "checkpoints/step_00000008"):
        if (runs / "l" / name).is_dir():
            sample.main(["--model", str(runs / "l" / name), "--output_dir", str(tmp_path / name)])
            made[name] = [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))]
    one, other = made.values()
    assert one == other


def test_a_checkpoint_without_an_ldm_is_refused_in_a_sentence(runs):
    (checkpoint,) = (runs / "v/checkpoints").glob("step_*8*")
    with pytest.raises(UserError, match="is no checkpoint of an LDM run"):
        sample.main(["--model", str(checkpoint)])


def test_as_many_images_are_made_of_everybody_as_trained(runs, tmp_path, capsys):
    """Of the user that has most, whoever is asked for; 6 of the 7 images of each train or validate."""
    shutil.copytree(runs / "l/final_model", tmp_path / "final_model")
    model = ["--model", str(tmp_path / "final_model"), "--output_dir", str(tmp_path / "made"), "--steps", "2"]
    sample.main([*model, "--per_training_image", "1"])
    assert [len(list((tmp_path / "made" / name).iterdir())) for name in USERS] == [6, 6, 6]
    sample.main([*model, "--num_images", "5"])  # neither flag is a setting: the same images
    assert "(15 there already)" in capsys.readouterr().out
    split = json.loads((tmp_path / "final_model/split.json").read_text())
    less = {side: [name for name in split[side] if side != "train" or not name.startswith("ID1/")] for side in split}
    (tmp_path / "final_model/split.json").write_text(json.dumps(less | {"settings": split["settings"]}))
    sample.main([*model, "--per_training_image", "2", "--users", "ID1"])
    assert [len(list((tmp_path / "made" / name).iterdir())) for name in USERS] == [12, 6, 6]


@pytest.mark.usefixtures("short_judgement")
def test_any_folder_of_images_by_user_is_judged_and_left_alone(runs, tmp_path, capsys):
    """As are other conditions, with a subset of the users; both have a verdict of their own."""
    made, other = make_images(tmp_path / "made", 2), make_images(tmp_path / "other", 2)
    shutil.rmtree(other / "ID2")
    for path in other.glob("*/*"):
        Image.open(path).rotate(90).save(path)  # others than those that classifiers are trained on
    shutil.copytree(runs / "l/final_model", tmp_path / "l/final_model")
    before = contents(made), contents(other)
    evaluate.main(["--model", str(tmp_path / "l/final_model"), "--images", str(made), "--test_dir", str(other)])
    assert (contents(made), contents(other)) == before
    result = json.loads((tmp_path / "l/evaluations/made/evaluation.json").read_text())
    assert {name: len(one["users"]) for name, one in result["results"].items()} == {"held_out": 3, "test_dir": 2}
    said = capsys.readouterr().out
    for one in result["results"].values():
        assert one["verdict"]["sentence"] in said


@pytest.mark.usefixtures("short_judgement")
def test_each_sampling_has_its_own_folder_and_evaluate_finds_it(runs, tmp_path, capsys):
    """`make train-ldm` after more epochs, and another seed: nothing is refused, and nothing written over."""
    shutil.copytree(runs / "l/final_model", tmp_path / "final_model")
    model = ["--model", str(tmp_path / "final_model")]
    interval = ["--set", "sampling.guidance_interval=[0.1, 5.0]"]
    with pytest.raises(UserError, match="images are not there yet; make them with"):
        evaluate.main(model)
    made = []
    for more in ([], ["--seed", "4"], ["--guidance", "3"], interval, []):
        if made and not more:  # more epochs
            unet = model_folder.load(tmp_path / "final_model/unet")
            torch.nn.init.normal_(unet.conv_in.bias)
            model_folder.save(unet, tmp_path / "final_model/unet")
        before = {path: path.read_bytes() for path in (tmp_path / "generated").rglob("*") if path.is_file()}
        for _ in range(2):
            sample.main([*model, "--num_images", "1", *more])
        assert {path: path.read_bytes() for path in before} == before
        (new,) = set((tmp_path / "generated").iterdir()) - set(made)
        assert str(new) in capsys.readouterr().out
        made.append(new)
    evaluate.main([*model, "--quick"])
    assert [(folder / "evaluation.json").is_file() for folder in made] == [False] * 4 + [True]
    with pytest.raises(UserError, match="holds images that another model made"):
        evaluate.main([*model, "--images", str(made[0])])


def test_sampling_interrupted_or_repeated_keeps_images_and_grid(runs, tmp_path, monkeypatch, capsys):
    common = ["--model", str(runs / "l/final_model"), "--output_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        whole = generate.generate

        def killed_in_the_second_batch(*args):
            if list(tmp_path.rglob("generated_*.png")):
                raise Killed
            return whole(*args)

        patch.setattr(generate, "generate", killed_in_the_second_batch)
        with pytest.raises(Killed):
            sample.main([*common, "--num_images", "3"])
    assert len(list(tmp_path.rglob("generated_*.png"))) == 4
    with pytest.raises(UserError, match="is not complete, since what writes it is at work or was cut off"):
        evaluate.main([*common[:2], "--images", str(tmp_path)])
    sample.main([*common, "--num_images", "3"])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    sample.main([*common, "--users", "ID1", "--num_images", "1"])
    said = capsys.readouterr()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert "1 image of 1 user in" in said.out
    assert said.err == ""  # no bar


def test_another_batch_size_of_sampling_means_the_same_images(runs, tmp_path, monkeypatch, capsys):
    """It is no part of what a folder is named after, and what is there is not made again."""
    asked, whole = [], generate.generate
    monkeypatch.setattr(generate, "generate", lambda *args: asked.append((len(args[4]), args[6])) or whole(*args))
    shutil.copytree(runs / "l/final_model", tmp_path / "final_model")
    model = ["--model", str(tmp_path / "final_model"), "--num_images", "2"]
    sample.main([*model, "--batch_size", "5"])
    assert asked == [(5, 5), (1, 5)]
    sample.main(model)
    assert len(asked) == 2
    assert "(6 there already)" in capsys.readouterr().out
    assert len(list((tmp_path / "generated").iterdir())) == 1


def test_an_unknown_user_is_answered_with_the_nearest_names(runs, tmp_path):
    with pytest.raises(UserError, match=r"--users 'ID11': not a user .*did you mean ID1.*ID1, ID2, ID10"):
        sample.main(["--model", str(runs / "l/final_model"), "--users", "ID11", "--output_dir", str(tmp_path / "n")])
    assert not (tmp_path / "n").exists()


def test_a_name_that_leaves_the_folder_is_refused(runs, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "users.json").write_text('{"users": ["../../outside"]}')
    with pytest.raises(UserError, match="not the name of a folder"):
        sample.main(["--model", str(model), "--config", TINY])


def test_memcheck_prints_the_true_parameter_counts(capsys):
    memcheck.main(["--config", "configs/medium.yaml"])
    text = capsys.readouterr().out
    for count in ("42,928,871", "139,680,132", "4,548,352"):
        assert count in text


def test_bad_input_ends_with_one_sentence_and_status_2(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "train.ldm", "--config", TINY, "--data_dir", str(tmp_path / "none"), "--vae_path", "x"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: x: there is no VAE here")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_vae_training_plans_and_starts_from_the_given_weights(runs, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "plan_micro_batch", lambda config, *_: seen.append(config.vae) or 4)
    vae.main(flags(runs, "tuned", "--vae_path", str(runs / "v/final_model"), "--learning_rate", "1e-9",
                   "--resolution", "32", "--set", "vae.channels=[8, 8]"))  # fmt: skip
    before, after = weights(runs / "v/final_model"), weights(runs / "tuned/final_model")
    for name, x in before.items():
        torch.testing.assert_close(after[name], x, rtol=0, atol=1e-5)
    tuned = model_folder.load(runs / "tuned/final_model", AutoencoderKL)
    assert tuned.config.channels == seen[0].channels == (8, 16)
    assert tuned.config.sample_size == 32
