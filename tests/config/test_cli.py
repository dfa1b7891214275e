"""The command line that all commands share: it changes just what it says, and ends in one sentence or a status."""

import argparse
import errno
import importlib
import io
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nets.unet import UNet2DConditionModel
from tests.tiny import PATH
from train.base.errors import Stopped, UserError
from train.base.version import VERSION
from train.config import cli
from train.config.cli import Parser, flag_keys, make_parser, read_config
from train.config.schema import Config

ROOT = Path(__file__).parents[2]
STAGES = ("vae", "ldm")

# Flag, value as typed, value as read; "T" is the stage's own training section.
FLAGS = [
    ("data_dir", "some/where", "some/where", ["data.dir"]),
    ("vae_path", "V/final_model", "V/final_model", ["latents.vae_path"]),
    ("resolution", "64", 64, ["data.resolution"]),
    ("batch_size", "3", 3, ["T.batch_size"]),
    ("gradient_accumulation_steps", "5", 5, ["T.gradient_accumulation_steps"]),
    ("num_epochs", "7", 7, ["T.num_epochs"]),
    ("num_steps", "7", 7, ["T.num_steps"]),
    ("learning_rate", "3e-5", 3e-5, ["T.optimizer.learning_rate"]),
    ("cross_attention_dim", "128", 128, ["unet.cross_attention_dim", "user_encoder.dim"]),
    ("mixed_precision", "bf16", "bf16", ["T.mixed_precision"]),
    ("sample_interval", "11", 11, ["T.sample_interval"]),
    ("save_interval", "13", 13, ["T.save_interval"]),
    ("max_hours", "8.5", 8.5, ["T.max_hours"]),
    ("output_dir", "O", "O", ["T.output_dir"]),
]
RECORDED = (
    "--data_dir D --vae_path V/final_model --resolution 128 --batch_size 1 --gradient_accumulation_steps {} "
    "--num_epochs 100 --learning_rate 1e-4 --cross_attention_dim {} --sample_interval {} --output_dir O"
)


def command(stage: str, *arguments: str) -> Config:
    return read_config(make_parser(stage, "", stage).parse_args(arguments), stage)


def flat(config: Config) -> dict:
    found = {}

    def walk(prefix, value):
        for key, inner in value.items():
            name = f"{prefix}{key}"
            walk(f"{name}.", inner) if isinstance(inner, dict) else found.update({name: inner})

    walk("", asdict(config))
    return found


# ---- flags and settings


def test_every_flag_of_the_design_is_there_for_both_stages():
    for stage in STAGES:
        assert list(flag_keys(stage)) == [flag for flag, *_ in FLAGS]


def test_the_batch_size_of_sample_is_that_of_sampling():
    before, after = flat(command("sample")), flat(command("sample", "--batch_size", "3"))
    assert {key: after[key] for key in after if after[key] != before[key]} == {"sampling.batch_size": 3}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dashes", [False, True], ids=["_", "-"])
@pytest.mark.parametrize(("flag", "text", "value", "keys"), FLAGS, ids=[flag for flag, *_ in FLAGS])
def test_a_flag_changes_its_keys_and_no_other(stage, dashes, flag, text, value, keys):
    option = "--" + (flag.replace("_", "-") if dashes else flag)
    before, after = flat(command(stage)), flat(command(stage, option, text))
    changed = {key: after[key] for key in after if after[key] != before[key]}
    taken = {"num_epochs": "num_steps", "num_steps": "num_epochs"}.get(flag)  # the one whose place it takes
    key = f"{stage}_training.{taken}"
    cleared = {key: None} if before.get(key) is not None else {}
    assert changed == {key.replace("T.", f"{stage}_training."): value for key in keys} | cleared


@pytest.mark.parametrize("stage", STAGES)
def test_set_wins_over_a_flag_and_the_last_set_over_the_first(stage):
    key = f"{stage}_training.batch_size"
    for order in (["--batch_size", "2", "--set", f"{key}=3"], ["--set", f"{key}=3", "--batch_size", "2"]):
        assert flat(command(stage, *order))[key] == 3
    assert flat(command(stage, "--set", f"{key}=3", "--set", f"{key}=4"))[key] == 4


def test_two_flags_of_which_one_can_be_given_are_refused():
    for stage in STAGES:
        with pytest.raises(UserError, match=r"^--num_epochs 3 and --num_steps 5: only one of them can be given$"):
            command(stage, "--num_steps", "5", "--num-epochs", "3")


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_a_recorded_number_of_epochs_is_taken_by_every_preset(preset):
    config = command("ldm", "--config", str(ROOT / f"configs/{preset}.yaml"), *RECORDED.format(4, 512, 1000).split())
    assert (config.ldm_training.num_epochs, config.ldm_training.num_steps) == (100, None)


def test_a_flag_wins_over_the_config_file():
    assert command("ldm", "--config", str(PATH), "--batch_size", "5").ldm_training.batch_size == 5


@pytest.mark.parametrize(
    ("accumulation", "width", "interval", "parameters"),
    [(4, 512, 1000, 139_680_132), (8, 256, 2000, 137_124_228)],
)
def test_the_recorded_command_lines_mean_what_they_meant(accumulation, width, interval, parameters):
    config = command("ldm", *RECORDED.format(accumulation, width, interval).split())
    training = config.ldm_training
    assert (config.data.dir, config.latents.vae_path, config.data.resolution) == ("D", "V/final_model", 128)
    assert (training.batch_size, training.gradient_accumulation_steps) == (1, accumulation)
    assert training.images_per_step == accumulation
    assert (training.num_epochs, training.optimizer.learning_rate) == (100, 1e-4)
    assert (training.sample_interval, training.output_dir) == (interval, "O")
    assert (config.unet.cross_attention_dim, config.user_encoder.dim) == (width, width)
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet2DConditionModel(config.unet).parameters()) == parameters


@pytest.mark.parametrize("arguments", [["--batchsize", "2"], ["--batch", "2"], ["stray"], ["--batch_size"]])
def test_an_unknown_or_shortened_flag_is_refused_by_its_name(arguments):
    with pytest.raises(UserError, match=arguments[0]):
        command("ldm", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch_size", "two"], r"--batch_size two.*must be a whole number"),
        (["--mixed_precision", "fp61"], r"--mixed_precision fp61.*did you mean fp16"),
        (["--set", "ldm_training.batch_sise=2"], r"batch_sise.*did you mean batch_size"),
        (["--set", "batch_size"], "must be SECTION.KEY=VALUE"),
        (["--set", "=3"], "must be SECTION.KEY=VALUE"),
        (["--config", "configs/mediun.yaml"], r"does not exist.*did you mean medium.yaml"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_flag(arguments, words):
    with pytest.raises(UserError, match=words):
        command("ldm", *arguments)


# ---- how a command ends


def too_large() -> RuntimeError:
    """What torch raises for more than the CPU's memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


def test_an_error_of_ours_keeps_its_traceback():
    def fails(_):
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        cli.run(fails)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("the file is not there"), "the file is not there"),
        (torch.OutOfMemoryError("tried to allocate 9 GiB.\nMore."), "out of memory: tried to allocate 9 GiB.; "),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB; "),
        (too_large(), "out of memory: can't allocate memory: you tried to allocate"),
    ],
)
def test_errors_are_one_sentence_and_status_2_except_with_debug(capsys, monkeypatch, error, sentence):
    def fails(_):
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(fails)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["x", "--debug"])
    with pytest.raises(type(error)):
        cli.run(fails)


def test_an_interrupted_command_promises_nothing(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.run(interrupted)
    assert (caught.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_the_default_config_is_found_from_every_folder(tmp_path, monkeypatch):
    there = command("ldm")
    monkeypatch.chdir(tmp_path)
    assert command("ldm") == there == Config.read(ROOT / "configs/medium.yaml")


def test_every_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        Parser("sample", "").parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"user-latent-diffusion {VERSION}, torch {torch.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "user-latent-diffusion"
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "train.base.version.VERSION"}


def help_of(name: str, stage: str = "ldm") -> str:
    return " ".join(make_parser(name, "", stage).format_help().split())


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_each_flag_sets_and_takes(stage):
    said = help_of(stage, stage)
    matters = set(flag_keys(stage)) - {"vae": {"cross_attention_dim"}, "ldm": set()}[stage]
    for flag, keys in flag_keys(stage).items():
        assert (f"--{flag} " in said) == (flag in matters)
        assert (f"sets {' and '.join(keys)} (" in said) == (flag in matters)
    assert f"sets {stage}_training.mixed_precision (one of no, fp16, bf16)" in said
    assert said.count("default: ") == 1
    assert "YAML file (default: configs/medium.yaml)" in said


@pytest.mark.parametrize(("name", "flags"), [
    ("bench", {"resolution", "batch_size", "cross_attention_dim", "mixed_precision"}),
    ("memcheck", {"resolution", "batch_size", "gradient_accumulation_steps", "cross_attention_dim", "mixed_precision"}),
])  # fmt: skip
def test_help_lists_no_flag_that_cannot_matter(name, flags):
    said = help_of(name)
    assert {flag for flag in flag_keys("ldm") if f"--{flag} " in said} == flags
    assert "(default: configs/medium.yaml)" in said


def every_flag(name: str) -> list[argparse.Action]:
    """Those of `python -m train.NAME`."""
    shown = []

    class ShownError(Exception):
        pass

    def show(parser, *_):
        shown.extend(parser._actions)
        raise ShownError

    main = importlib.import_module(f"train.{name}").main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_args", show)
        with pytest.raises(ShownError):
            main([])
    return shown


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "train").glob("[a-z]*.py")))
def test_every_flag_of_every_command_has_a_text(name):
    flags = every_flag(name)
    assert len(flags) > 2
    assert [flag.dest for flag in flags if not flag.help] == []


def test_help_of_sample_and_evaluate_lists_only_flags_they_use():
    said = help_of("sample", "sample")
    assert "sets sampling.batch_size (a whole number)" in said
    assert "YAML file (default: config.yaml of the model)" in said
    assert "--output_dir OUTPUT_DIR, --output-dir OUTPUT_DIR folder of the images (default: generated/" in said
    assert "--num_epochs" not in said
    assert "--data_dir" in (said := help_of("evaluate"))
    assert "--output_dir" not in said
    line = RECORDED.format(4, 512, 1000).split()
    assert vars(make_parser("sample", "", "sample").parse_args(line))["num_epochs"] == "100"  # of an old script


@pytest.mark.parametrize(("returned", "status"), [(None, None), (0, 0), (1, 1)])
def test_a_command_that_ends_well_gives_its_own_status(returned, status):
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda _: returned)
    assert caught.value.code == status


def test_a_stopped_command_says_so_and_exits_with_its_status(capsys):
    def main(_):
        raise Stopped("VAE: SIGTERM: saved", 143)

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "VAE: SIGTERM: saved\n"


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped("VAE: SIGHUP: saved", 129), 129), (UserError("data: no such folder"), 2)]
)
def test_a_command_ended_on_a_closed_terminal_keeps_its_status(monkeypatch, error, status):
    """What is written to a terminal that is gone fails; nothing is wrong with the run."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    def main(_) -> None:
        raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == status


@pytest.mark.parametrize("letters", [1, 100_000], ids=["buffered", "at once"])
def test_a_closed_pipe_ends_a_command_without_a_message(letters):
    """`python -m train.memcheck --help | head -1`, and the pipe is closed before anything is written."""
    code = f"from train.config import cli; cli.run(lambda _: print('x' * {letters}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_console_that_is_closed_or_lacks_letters_can_be_printed_to(monkeypatch):
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    cli.make_printable()
    print("José", flush=True)
    print("nowhere", file=sys.stderr, flush=True)
    assert bytes_written.getvalue() == b"Jos\\xe9\n"
    sys.stderr.close()
