"""The command: what it prints, draws and writes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from train import memcheck
from train.base.errors import UserError
from train.memory import report


def test_a_gpu_that_no_batch_fits_on_is_told_so(capsys):
    memcheck.main(["--config", "configs/sd.yaml", "--gpu", "RTX3060"])
    printed = capsys.readouterr().out
    assert re.fullmatch(r"Does not fit an RTX3060 with batch 2, where [\d.]+ GiB are missing; nothing makes it fit",
                        first_sentence(printed))  # fmt: skip
    assert "RTX3060: " in printed
    assert "lever, traced by itself" in printed


def test_a_gpu_that_is_refused_the_precision_is_told_what_fits(capsys):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "T4", "--set", "ldm_training.mixed_precision=bf16"])
    printed = capsys.readouterr().out
    assert first_sentence(printed) == "Does not run on a T4, which has no bf16; it fits with mixed_precision fp16"
    assert "no bf16" in printed
    assert "T4: fits with mixed_precision fp16." in printed


def first_sentence(printed: str) -> str:
    first, second, *_ = printed.splitlines()
    assert first.endswith(" (predicted).")
    assert not second
    return first.removesuffix(" (predicted).")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [("--gpu T4", r"Fits a T4 with batch 16, 1[23] GiB left; up to about [\d,]+ images at once"),
     ("--stage sample", r"Fits 12 of 12 known cards with batch 16; .* is an RTX3060, with .* GiB left; up .* at once")],
)  # fmt: skip
def test_the_first_line_of_the_answer_is_one_sentence(flags, sentence, capsys):
    memcheck.main(["--config", "configs/demo.yaml", *flags.split()])
    assert re.fullmatch(sentence, first_sentence(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("number", "up", "text"),
    [(104, False, "100"), (1389, False, "1,300"), (9.99, False, "9.9"), (10.0, False, "10"), (7, False, "7"),
     (0.876, False, "0.87"), (0.004, False, "0"), (9.01, True, "9.1"), (384.75, True, "390"), (0.004, True, "0.01")],
)  # fmt: skip
def test_two_digits_promise_no_more_than_there_is(number, up, text):
    assert report.roughly(number, up) == text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [("--users 65537", "--users 65537: must be at least 1 and at most 65536"),
     ("--ranks 1000000", "--ranks 1000000: must be at least 1 and at most 1024"),
     ("--batch_size 1000000000", "gradient_accumulation_steps = 1000000000: must be at least 1 and at most 65536"),
     ("--pictures=", "--pictures: needs a value"),
     ("--measure=", "--measure: needs a value"), ("--measure x --json", "goes with none of --gpu, --json")],
)  # fmt: skip
def test_what_no_account_can_be_made_of_is_refused_in_a_sentence(flags, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        memcheck.main(["--config", "configs/demo.yaml", "--set", "ldm_training.gradient_accumulation_steps=1",
                       *flags.split()])  # fmt: skip


def test_pictures_may_go_into_the_folder_that_one_is_in(tmp_path: Path, monkeypatch, capsys):
    config = Path("configs/demo.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    memcheck.main(["--config", str(config), "--stage", "sample", "--pictures", "."])
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_the_command_gives_an_account_to_programs(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "T4", "--json"])
    account = json.loads(capsys.readouterr().out)
    assert account["measured"] is False
    assert sum(sum(row.values()) for row in account["at_peak"].values()) == account["peak"]["bytes"]
    assert {"card", "bytes", "fits", "left", "largest_batch"} <= account["cards"][0].keys()
    assert account["advice"]


def test_a_lever_that_saves_in_one_phase_says_where_the_peak_is_then(capsys):
    """Checkpointing takes far more from the forward pass than the peak falls, since drawing pictures stays."""
    medium = ["--config", "configs/medium.yaml", "--gpu", "P100", "--set", "ldm_training.lean_activations=false"]
    memcheck.main([*medium, "--json"])
    account = json.loads(capsys.readouterr().out)
    (row,) = (row for row in account["advice"] if row["lever"] == "gradient_checkpointing")
    assert (account["peak"]["phase"], row["then"]) == ("forward", "pictures")
    assert row["in_phase"] > 3 * row["allocated"]
    memcheck.main(medium)
    said = " ".join(capsys.readouterr().out.split())
    assert "saves MiB" in said
    assert "With one of these it is in another, so that it falls by less than that phase does" in said
    assert "earlier" not in said


def test_the_command_prints_tables_and_draws_pictures(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "P100", "--pictures", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "predicted" in printed
    assert "P100" in printed
    charts = {"memory_modules.png", "memory_timeline.png", "memory_components.png"}
    assert {p.name for p in tmp_path.iterdir()} == charts


@pytest.mark.parametrize("ranks", [1, 2])
def test_several_gpus_have_buffers_to_exchange_gradients(ranks, capsys):
    memcheck.main(["--config", "configs/demo.yaml", "--ranks", str(ranks), "--gpu", "T4"])
    assert ("NCCL buffers" in capsys.readouterr().out) == (ranks > 1)


def test_sampling_on_several_gpus_is_refused():
    with pytest.raises(UserError, match="on one card"):
        memcheck.main(["--config", "configs/demo.yaml", "--stage", "sample", "--ranks", "2"])
