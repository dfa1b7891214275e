"""The bench: both sides do the same work, the clock is right, and every figure of it arrives in the record."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.tiny import tiny
from train import bench
from train.base.errors import UserError
from train.memory.models import blank_stage
from train.memory.scenario import Scenario
from train.speed import clock, document, machine, otherwise, parts, whole
from train.speed.clock import Stopwatch, figure, in_turns, ratio
from train.speed.kept import kept_per_sample
from train.speed.sides import diffusers_here

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
CPU = torch.device("cpu")
PLAIN = ("vae_loss.spectral_weight=0.1", "user_encoder.tokens_per_user=2", "unet.condition_in_time_embedding=true")


@pytest.mark.parametrize("name", ["ldm", "vae"])
@pytest.mark.parametrize("settings", [(), PLAIN])
def test_both_sides_have_the_same_loss_from_the_same_weights(name, settings):
    config = tiny(*settings)
    sides = parts.stage_sides(blank_stage(Scenario(config, name, device="cpu")), diffusers_here(), "no")
    batch = sides["ours"].draw(0, torch.zeros(3, dtype=torch.int64))
    ours, theirs = (side.losses(batch, slice(0, 3))["loss"] for side in sides.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_where_our_blocks_are_compiled_theirs_are_too():
    config = tiny("ldm_training.compile=true", "vae_training.compile=true")
    for name in ("ldm", "vae"):
        sides = parts.stage_sides(blank_stage(Scenario(config, name, device="cpu")), diffusers_here(), "no")
        ours, theirs = ([m for m in side.model.modules() if m._compiled_call_impl] for side in sides.values())
        count = sum("Resnet" in type(m).__name__ for m in ours)
        assert count == sum("Resnet" in type(m).__name__ for m in theirs) > 0
        assert len(ours) == sum(type(m).__name__ != "Attention" or name == "vae" for m in theirs)


def test_sides_take_turns_in_both_orders_after_a_round_to_warm_up(monkeypatch):
    monkeypatch.setattr(clock, "ROUNDS", 3)
    order = []

    def turn(name: str):
        def take(watch: Stopwatch) -> None:
            order.append(name)
            watch.lap("all")

        return take

    found = in_turns({"a": turn("a"), "b": turn("b")}, CPU)
    assert "".join(order) == "abbaabba"
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 3, "b": 3}


def test_the_phases_of_a_turn_are_all_of_its_time(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(CPU)
    for phase in ("forward", "backward", "forward"):
        watch.lap(phase)
    assert watch.seconds == {"forward": 5.0, "backward": 2.0}


def test_a_ratio_is_that_of_the_rounds_and_not_of_the_medians():
    assert ratio([1.0, 20.0, 3.0], [2.0, 10.0, 3.0]) == figure([0.5, 1.0, 2.0])
    assert figure([3.0, 1.0, 2.0]) == clock.Figure(2.0, 1.0, 3.0)


def test_the_fused_step_takes_the_place_of_the_other():
    phases = {"forward": 1.0, "optimizer": 4.0, parts.FUSED: 2.5}
    assert document.whole(phases) == 5.0
    assert document.with_fused(phases) == 3.5
    assert document.with_fused({"forward": 1.0, "optimizer": 4.0}) == 5.0


def test_what_is_kept_is_counted_per_sample_without_weights():
    weight = torch.ones(5, 7, requires_grad=True)

    def losses(batch: int) -> torch.Tensor:
        x = torch.ones(batch, 5) * 2.0  # kept for the weight's gradient
        return (x @ weight).exp().sum()  # exp keeps its result

    assert kept_per_sample(losses) == (5 + 7) * 4


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(clock, "ROUNDS", 2)
    monkeypatch.setattr(machine, "SIDES", {"cpu": 64})
    monkeypatch.setattr(machine, "COPIED", 2**16)
    monkeypatch.setattr(otherwise, "compile_blocks", no_compiler)


def no_compiler(model, device) -> None:
    raise UserError("compile: needs a compiler; set compile to false")


def test_the_record_has_every_part_beside_diffusers(tmp_path, small, capsys):
    half = [f"--set={stage}_training.mixed_precision=fp16" for stage in ("vae", "ldm")]  # fp32 where there is no card
    bench.main(["--config", TINY, *half, "--record", str(tmp_path / "made/bench.md")])
    text = (tmp_path / "made/bench.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out.removesuffix("\n")
    rows = [*parts.PHASES, "whole step", "UNet, one evaluation", "VAE, encode", "VAE, decode", "copy", "times as fast"]
    assert [row for row in rows if f"\n| {row}" not in text] == []
    found = json.loads((tmp_path / "made/bench.json").read_text(encoding="utf-8"))
    assert set(found["steps"]["ldm"]["rounds"]) == {"ours", "ours, all kept", "diffusers"}
    assert found["kept"]["ldm"]["ours"] < found["kept"]["ldm"]["ours, all kept"]
    for stage in ("ldm", "vae"):
        assert found["kept"][stage]["predicted"] == pytest.approx(found["kept"][stage]["ours"], rel=0.02)
    for row in ("| UNet, 1 image ", "| VAE, 1 image ", "VAE, 4 images, with an adversary"):
        assert row in text
    assert "- UNet, 4 images, blocks compiled: not measured. compile: needs a compiler; set compile to false" in text
    assert found["run"]["images_per_second"] > 0


def test_without_diffusers_our_side_is_measured(tmp_path, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    run = {"seconds_to_first_step": 1.0, "images_per_second": 1.0}
    monkeypatch.setattr(whole, "run_of_ldm", lambda config: run)
    bench.main(["--config", TINY, "--record", str(tmp_path / "bench.md")])
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "| ours / ours, all kept |" in text
    assert "ours / diffusers" not in text
    assert "old recipe" not in text


def latent_sides() -> dict:
    sides = parts.stage_sides(blank_stage(Scenario(tiny(), "ldm", device="cpu")), diffusers_here(), "no")
    sides["ours"].use_latents(torch.rand(1, 2, *sides["ours"].source.shape))
    for side in sides.values():
        side.source = sides["ours"].source
    return sides


def test_a_step_in_another_layout_leaves_the_weights_as_they_were():
    sides = latent_sides()
    kernel = sides["ours"].model.unet.conv_in.weight
    values, strides = kernel.detach().clone(), kernel.stride()
    with otherwise.channels_last(sides):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        sides["ours"].learner.optimizer.state[kernel] = {}
    assert kernel.stride() == strides
    assert torch.equal(kernel, values)
    assert not sides["ours"].learner.optimizer.state


def test_a_graph_is_captured_once_and_then_replayed(monkeypatch):
    """With stand-ins for what only a card has: what is captured runs as it is."""
    replayed = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Mock(replay=lambda: replayed.append(1)))
    sides = latent_sides()
    batch = sides["ours"].draw(0, torch.zeros(4, dtype=torch.int64))
    turns = parts.step_turns(sides, partial(otherwise.graphed, batch=batch, images=3), diffusers_here())
    for turn in turns.values():
        watch = Stopwatch(CPU)
        turn(watch)
        assert list(watch.seconds)[:3] == ["both passes", "clip", "optimizer"]
    assert len(replayed) == len(turns) == 2


def test_a_run_that_fails_is_told_with_its_own_words(tmp_path):
    config = tiny("latents.vae_path=/nowhere")
    with pytest.raises(UserError, match=r"ended without a step: .*nowhere"):
        whole.until_logged(config, tmp_path / "run", 1)
