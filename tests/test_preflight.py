"""Before the first step: room on the disk and on the card, and latents of a sane scale, or a sentence."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion.schedule import ScheduleConfig
from tests.tiny import tiny, tiny_images, tiny_vae
from train.base.errors import UserError
from train.data.latents import measure_scaling
from train.memory.allocator import served
from train.memory.fit import account_of
from train.memory.scenario import Setting
from train.runs.checkpoint import save_checkpoint
from train.stages.preflight import plan_micro_batch, require_disk, require_sane_latents, warn_of_vanishing_signal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WINDOW = ("ldm_training.batch_size=30", "ldm_training.gradient_accumulation_steps=4")
Usage = namedtuple("Usage", "total used free")


# ---- the disk


@pytest.fixture
def disk(monkeypatch):
    """Pretend that so many bytes are free."""

    def pretend(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))

    return pretend


def training(folder, keep=2):
    return tiny(f"ldm_training.output_dir={folder}", f"ldm_training.keep_checkpoints={keep}").ldm_training


@pytest.mark.parametrize("adversary", [None, nn.Linear(50, 4, bias=False)])
@pytest.mark.parametrize("keep", [1, 3])
def test_room_is_asked_for_the_last_checkpoints_the_best_one_more_and_the_model(tmp_path, disk, keep, adversary):
    model = nn.Linear(1000, 5, bias=False)
    one = 4 * 20_000 + (3 * 800 if adversary else 0)
    needed = one * (keep + 2) + 20_000
    disk(needed)
    require_disk(training(tmp_path / "not" / "there", keep), model, adversary)
    disk(needed - 1)
    with pytest.raises(UserError, match=rf"{keep + 2} checkpoints and the model need .* are free; lower keep_check"):
        require_disk(training(tmp_path, keep), model, adversary)


def test_a_real_checkpoint_is_hardly_larger_than_what_is_asked_for(tmp_path, disk):
    model = nn.Linear(1000, 50, bias=False)
    state = {name: {"weight": torch.zeros(50, 1000)} for name in ("model", "ema", "moments", "squares")}
    path = save_checkpoint(tmp_path, 1, state, keep=1)
    size = sum(file.stat().st_size for file in path.iterdir())
    asked = 4 * 4 * sum(p.numel() for p in model.parameters())
    assert asked < size < 1.02 * asked


def test_what_the_run_has_on_the_disk_already_is_not_asked_for_again(tmp_path, disk):
    model = nn.Linear(1000, 5, bias=False)
    for step in (1, 2):
        (tmp_path / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        (tmp_path / f"checkpoints/step_{step:08d}/state.pt").write_bytes(bytes(80_000))
    disk(2 * 80_000 + 20_000)
    require_disk(training(tmp_path), model)


def test_what_is_less_than_a_gibibyte_is_said_in_mebibytes(tmp_path, disk):
    disk(3 * 2**20)
    with pytest.raises(UserError, match=r"need 31\.1 MiB, 3\.0 MiB are free"):
        require_disk(training(tmp_path), nn.Linear(1000, 480, bias=False))
    disk(3 * 2**30)
    assert require_disk(training(tmp_path), nn.Linear(1000, 480, bias=False)).endswith(" of 3.0 GiB free")


# ---- the schedule


def test_no_signal_at_all_is_no_matter_to_another_prediction(capsys):
    warn_of_vanishing_signal(ScheduleConfig(zero_terminal_snr=True, prediction="velocity"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "prediction", "warned"),
    [
        ("cosine", "noise", True), ("cosine", "velocity", False), ("cosine", "x0", False), ("linear", "noise", False),
        ("scaled_linear", "noise", False),
    ],
)  # fmt: skip
def test_noise_prediction_where_hardly_any_signal_is_left_is_warned_of(capsys, kind, prediction, warned):
    warn_of_vanishing_signal(ScheduleConfig(kind=kind, prediction=prediction))
    said = capsys.readouterr().err
    assert said.count("\n") == warned
    assert ("multiplied by 20," in said and "set schedule.prediction to velocity" in said) == warned


# ---- the VAE and the data


@pytest.mark.parametrize(("factor", "sane"), [(1.0, True), (1.5, True), (3.0, False), (0.3, False), (1e9, False)])
def test_latents_of_a_scale_far_from_one_are_refused_before_training(factor, sane):
    data, rows = tiny_images(), torch.arange(12)
    true = measure_scaling(tiny_vae(tiny()), data, rows, CPU)["scaling_factor"]
    vae = tiny_vae(tiny(), scaling_factor=factor * true)
    if sane:
        assert require_sane_latents(vae, data, rows, CPU) == pytest.approx(factor, rel=1e-4)
    else:
        with pytest.raises(UserError, match="not about 1: the VAE was trained on other images"):
            require_sane_latents(vae, data, rows, CPU)


# ---- the card's memory


WORKSPACES = 2 * 8_519_680  # cuBLAS's, on a Pascal: forward and backward


@pytest.fixture(scope="module")
def needs() -> dict[int, tuple[int, int]]:
    """Bytes that tensors ask for, and that the card must have free, by the pieces that 120 images are cut into."""
    found = {}
    for pieces in (1, 2, 3, 4):
        setting = Setting(tiny(), "ldm", 3).with_training(batch_size=120 // pieces, gradient_accumulation_steps=pieces)
        account = account_of(setting)
        found[pieces] = account.peak().bytes, served(account).peak_reserved + WORKSPACES
    return found


@pytest.fixture
def card(monkeypatch):
    """Pretend that a card, a Pascal unless it is told, has so many bytes free."""

    def pretend(free: int, capability=(6, 0)) -> None:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, 2 * free))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)

    return pretend


def test_on_the_cpu_the_config_decides(needs):
    assert plan_micro_batch(tiny(*WINDOW), "ldm", 3, CPU) == 30
    assert plan_micro_batch(tiny(*WINDOW, "ldm_training.auto_batch=true"), "ldm", 3, CPU) == 30


def test_a_run_that_fits_is_told_in_numbers(card, needs, capsys):
    card(2 * needs[4][1])
    assert plan_micro_batch(tiny(*WINDOW), "ldm", 3, CUDA) == 30
    said = capsys.readouterr().err
    assert f"30 images at once need {needs[4][0] / 2**30:.2f} GiB (predicted)" in said
    assert "may not fit" not in said


def test_a_run_whose_tensors_alone_are_too_many_is_refused_with_numbers_and_advice(card, needs):
    card(needs[4][0] - 1)
    with pytest.raises(UserError, match=r"need \d.*GiB \(predicted\), \d.*GiB are free; set auto_batch to true, or"):
        plan_micro_batch(tiny(*WINDOW), "ldm", 3, CUDA)


def test_a_run_that_only_the_allocators_rounding_may_break_is_warned_of(card, needs, capsys):
    requested, wanted = needs[4]
    assert requested < wanted
    card(requested)
    assert plan_micro_batch(tiny(*WINDOW), "ldm", 3, CUDA) == 30
    assert "this may not fit" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", [1, 3, 4])
def test_auto_batch_plans_the_largest_micro_batch_that_fits(card, needs, pieces):
    """Of a window of 120 images: whatever the config says of the micro-batch, it is in as few pieces as can be."""
    assert needs[1][1] > needs[2][1] > needs[3][1] > needs[4][1]
    card(needs[pieces][1])
    assert plan_micro_batch(tiny(*WINDOW, "ldm_training.auto_batch=true"), "ldm", 3, CUDA) == 120 // pieces


def test_attention_is_planned_as_this_card_computes_it(card):
    bf16 = tiny("ldm_training.mixed_precision=bf16", "ldm_training.batch_size=30")
    setting = Setting(bf16, "ldm", 3)
    flash, plain = (account_of(replace(setting, attention=kind)).peak().bytes for kind in ("flash", "efficient"))
    assert flash < plain
    card(flash, capability=(8, 0))
    assert plan_micro_batch(bf16, "ldm", 3, CUDA) == 30
    card(flash, capability=(7, 5))
    with pytest.raises(UserError, match="the card's memory"):
        plan_micro_batch(bf16, "ldm", 3, CUDA)


@pytest.mark.parametrize("auto", [False, True])
def test_a_process_plans_its_share_of_the_window_and_gradients_that_stay(monkeypatch, card, auto, capsys):
    """Of two processes each learns from 60 of the window's 120 images, in 1 piece or 2 of 30."""
    monkeypatch.setattr("train.base.processes.world_size", lambda: 2)
    config = tiny("ldm_training.batch_size=60", "ldm_training.gradient_accumulation_steps=2",
                  f"ldm_training.auto_batch={str(auto).lower()}")  # fmt: skip
    halves = Setting(config, "ldm", 3)  # two pieces of 60: gradients are there while the second is computed
    at_once = account_of(halves)
    assert at_once.peak().bytes > account_of(halves.with_training(gradient_accumulation_steps=1)).peak().bytes
    card(served(at_once).peak_reserved + WORKSPACES)
    assert plan_micro_batch(config, "ldm", 3, CUDA) == 60
    assert f"need {at_once.peak().bytes / 2**30:.2f} GiB" in capsys.readouterr().err
    card(at_once.peak().bytes - 1 + (WORKSPACES if auto else 0))
    if auto:
        assert plan_micro_batch(config, "ldm", 3, CUDA) == 30
    else:
        with pytest.raises(UserError, match="60 images at once need"):
            plan_micro_batch(config, "ldm", 3, CUDA)


def test_auto_batch_refuses_a_card_that_a_single_image_is_too_much_for(card):
    card(10**6)
    with pytest.raises(UserError, match=r"1 images at once need .* are free; set gradient_checkpointing"):
        plan_micro_batch(tiny(*WINDOW, "ldm_training.auto_batch=true"), "ldm", 3, CUDA)
