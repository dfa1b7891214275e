"""The comparison with a card, of a card that is made up here: what a record says, and what it calls a miss."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.memory.presets import config_of
from train import memcheck
from train.base.errors import UserError
from train.base.units import MiB
from train.memory import measure
from train.memory.allocator import served
from train.memory.fit import account_of, largest_batch
from train.memory.gpus import GPU
from train.memory.measure import (
    Peaks,
    case_name,
    compared,
    find_largest_batch,
    grid,
    largest_batch_cases,
    on_cuda,
    record,
    verdict,
)
from train.memory.overhead import CONTEXT, cublas
from train.memory.scenario import Scenario

IMAGINARY = GPU("imaginary", 3.0, (7, 5), "")
SCENARIO = Scenario(config_of("demo"), validates=False)


def as_predicted(scenario: Scenario, more: int = 0) -> Peaks | None:
    """A card that takes what the account says, and `more` bytes."""
    account = account_of(scenario)
    given, workspace = served(account), cublas(IMAGINARY, account).bytes + more
    peaks = Peaks(account.peak().bytes + workspace, given.peak_allocated + workspace, given.peak_reserved + workspace)
    return peaks if peaks.reserved <= IMAGINARY.bytes - CONTEXT.bytes else None


def test_a_gpu_that_takes_what_is_predicted_leaves_no_error():
    row = compared(SCENARIO, IMAGINARY, as_predicted)
    assert [row.error(what) for what in ("requested", "allocated", "reserved")] == [0, 0, 0]
    assert not row.missed


@pytest.mark.parametrize(("more", "missed"), [(63 * MiB, False), (65 * MiB, True), (-65 * MiB, True)])
def test_an_error_of_more_than_64_mib_of_a_small_run_is_a_miss(more, missed):
    row = compared(SCENARIO, IMAGINARY, lambda scenario: as_predicted(scenario, more))
    assert row.error("allocated") == -more
    assert row.missed == missed


def test_what_is_said_to_fit_and_runs_out_of_memory_is_a_miss():
    row = compared(SCENARIO, IMAGINARY, lambda scenario: None)
    assert row.fits
    assert row.missed
    assert "MISS" in record({}, [row], [])


@pytest.mark.parametrize(("true", "missed"), [(1.0, False), (1.15, False), (1.2, True), (0.99, True), (0.0, True)])
def test_the_true_largest_batch_is_found_by_running(true, missed):
    predicted = largest_batch(SCENARIO, IMAGINARY)
    most, runs = int(true * predicted), []

    def run(scenario: Scenario) -> Peaks | None:
        runs.append(scenario.micro_batch)
        return as_predicted(SCENARIO) if runs[-1] <= most else None

    end = find_largest_batch(SCENARIO, IMAGINARY, run)
    assert (end.predicted, end.true, end.missed) == (predicted, most, missed)
    assert len(runs) < 40


def test_the_grid_holds_every_combination_once():
    cases = grid(Scenario(config_of("medium")))
    assert len(set(cases)) == len(cases) == 3 * 2 * 2 * 2 * 3
    assert len(largest_batch_cases(Scenario(config_of("medium")))) == 4


def test_the_record_names_machine_runs_and_misses():
    rows = [compared(SCENARIO.with_fused(fused), IMAGINARY, as_predicted) for fused in (False, True)]
    rows.append(compared(SCENARIO, IMAGINARY, lambda scenario: as_predicted(scenario, 65 * MiB)))
    text = record({"card": "imaginary", "commit": "abc"}, rows, [])
    assert "- card: imaginary" in text
    assert text.count("MISS") == 1
    assert f"Missed: {rows[2].name}." in text
    assert "median" in verdict(rows, [])


@pytest.mark.parametrize(("cause", "fitted"), [(torch.OutOfMemoryError("cuda"), False), (None, None)])
def test_a_run_that_finds_no_memory_in_its_optimizer_did_not_fit(monkeypatch, cause, fitted):
    def take():
        try:
            if cause:
                raise cause
        except torch.OutOfMemoryError:
            raise UserError("there is no memory for the optimizer") from None
        raise UserError("something else")

    for function in ("empty_cache", "set_per_process_memory_fraction", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, function, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**30))
    monkeypatch.setattr(measure, "prepare", lambda scenario: SimpleNamespace(take=take))
    if fitted is None:
        with pytest.raises(UserError, match="something else"):
            on_cuda(SCENARIO, 2**29)
    else:
        assert on_cuda(SCENARIO, 2**29) is None


def test_an_unwritable_record_is_refused_before_any_measurement(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(measure, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(measure, "on_cuda", None)
    (tmp_path / "record.md").write_text("of another card")
    for path in (tmp_path / "record.md", tmp_path, Path()):
        with pytest.raises(UserError, match="is there already"):
            measure.measure(SCENARIO, path)
    with pytest.raises(OSError, match="exists"):
        measure.measure(SCENARIO, tmp_path / "record.md" / "more.md")
    assert (tmp_path / "record.md").read_text() == "of another card"


def test_sampling_is_measured_at_half_once_and_twice_its_batch():
    sampling = replace(SCENARIO, stage="sample")
    middle = sampling.micro_batch
    expected = [f"sample batch {size}" for size in (middle // 2, middle, 2 * middle)]
    assert [case_name(case) for case in grid(sampling)] == expected
    assert [case_name(case, batch=False) for case in largest_batch_cases(sampling)] == ["sample"]


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="CUDA card"):
        memcheck.main(["--measure", str(tmp_path / "record.md")])
    assert not list(tmp_path.iterdir())
