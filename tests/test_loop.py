"""The loop counts steps that were taken, keeps the best, and ends, however it ends, with all its work saved."""

import itertools
import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.test_step import CPU, Problem, scaler, step
from train.base.errors import UserError
from train.config import cli
from train.engine.ema import EMA
from train.engine.optim import OptimConfig, learning_rate, make_adamw, set_learning_rate
from train.engine.step import StepResult
from train.engine.stopping import NOT_DONE, Stop, Stopped
from train.engine.trainer import MAX_LOST, MAX_SKIPPED, Best, TrainingConfig, resume, train
from train.runs.checkpoint import load_latest

FALLING = OptimConfig(learning_rate=0.01, warmup_steps=2)
NOTHING = lambda *_: None  # noqa: E731


def training(folder, **options) -> TrainingConfig:
    return TrainingConfig(str(folder), num_epochs=1, batch_size=2, gradient_accumulation_steps=3, **options)


class Run:
    """A small training, started in `folder` or going on there.

    Its attempts (counted from 0) multiply the loss by `factors`, their gradient by `gradient_factors`. `before` is
    called before each step with its number, `score` gives the metric of a validation.
    """

    def __init__(self, folder, total=7, factors=None, gradient_factors=None, before=NOTHING, score=lambda _: 1.0,
                 scaled=True, **options):  # fmt: skip
        self.problem, self.config = Problem(6), training(folder, **options)
        self.checkpoints = folder / "checkpoints"
        optimizer = make_adamw(self.problem.parameters(), FALLING)
        self.ema = EMA(self.problem.model, 0.9)
        one, attempts = scaler(scaled, init_scale=2.0**20), itertools.count()
        self.asked, self.validated, self.rates = [], [], []

        def take_step(number: int) -> StepResult:
            self.asked.append(number)
            before(number)
            attempt = next(attempts)

            def losses(rows: slice) -> dict[str, torch.Tensor]:
                loss = self.problem.losses(rows)["loss"] * (factors or {}).get(attempt, 1.0)
                loss.register_hook(lambda gradient: gradient * (gradient_factors or {}).get(attempt, 1.0))
                return {"loss": loss}

            set_learning_rate(optimizer, learning_rate(FALLING, number, total))
            result = step(self.problem, optimizer, one, self.config.batch_size, losses=losses)
            if result.taken:
                self.ema.update(self.problem.model)
                self.rates.append(optimizer.param_groups[0]["lr"])
            return result

        def validate(number: int) -> dict[str, float]:
            self.validated.append(number)
            return {"score": score(number)}

        best = Best("score", max)
        state = {"model": self.problem.model, "ema": self.ema, "optimizer": optimizer, "scaler": one, "best": best}
        self.resume = lambda: resume(self.config, total, state)
        self.train = lambda step: train(
            "test", self.config, total, step, state, take_step, validate, best, ("loss",), CPU
        )

    def __call__(self) -> "Run":
        self.train(self.resume())
        return self

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())


def assert_same_end(a: Run, b: Run) -> None:
    assert torch.equal(a.problem.weights(), b.problem.weights())
    assert a.ema.updates == b.ema.updates
    for x, y in zip(a.ema.model.parameters(), b.ema.model.parameters(), strict=True):
        assert torch.equal(x, y)
    ours, theirs = (load_latest(run.checkpoints) for run in (a, b))
    assert ours.path.name == theirs.path.name
    assert_equal(ours.state, theirs.state)


def assert_equal(a, b) -> None:
    """Two states: the same keys, tensors and values, bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# ---- what counts steps


def test_skipped_windows_move_neither_weights_nor_average_nor_learning_rate_nor_counter(tmp_path):
    whole = Run(tmp_path / "a")()
    skipping = Run(tmp_path / "b", gradient_factors=dict.fromkeys({0, 3, 4}, math.inf))()
    assert whole.asked == list(range(7))
    assert skipping.asked == [0, 0, 1, 2, 2, 2, 3, 4, 5, 6]
    assert whole.rates == skipping.rates == [learning_rate(FALLING, number, 7) for number in range(7)]
    assert torch.equal(whole.problem.weights(), skipping.problem.weights())
    assert whole.ema.updates == skipping.ema.updates == 7


def test_intervals_count_optimizer_steps_and_not_micro_batches_or_attempts(tmp_path):
    overflows = dict.fromkeys({1, 5}, math.inf)
    run = Run(tmp_path, 8, overflows, sample_interval=3, save_interval=2, keep_checkpoints=9)()
    assert run.validated == [3, 6, 8]
    assert [name[5:13] for name in run.names()] == [f"{number:08d}" for number in (2, 3, 4, 6, 8)]  # 3 is the best


def test_a_run_started_again_goes_on_after_its_last_checkpoint_and_ends_in_the_same_bytes(tmp_path):
    def dies(number):
        if number == 5:
            raise ZeroDivisionError

    whole = Run(tmp_path / "a", save_interval=3)()
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "b", before=dies, save_interval=3)()
    resumed = Run(tmp_path / "b", save_interval=3)()
    assert resumed.asked == [3, 4, 5, 6]
    assert_same_end(whole, resumed)


def test_a_run_that_has_taken_more_steps_than_are_asked_for_is_refused(tmp_path):
    Run(tmp_path, 7)()
    assert Run(tmp_path, 7).resume() == 7
    with pytest.raises(UserError, match=r"the run has already taken 7 steps, more than the 5 asked for; raise num_"):
        Run(tmp_path, 5).resume()


def test_a_damaged_checkpoint_is_set_aside_when_the_run_goes_on_and_not_before(tmp_path):
    run = Run(tmp_path, 4, save_interval=2)()
    (tmp_path / "checkpoints/step_00000004_best/state.pt").write_bytes(b"")
    again = Run(tmp_path, 4, save_interval=2)
    before = run.names()
    step = again.resume()
    assert (step, again.names()) == (2, before)
    again.train(step)
    assert again.names() == before  # it was saved once more, and what was damaged has gone
    assert Run(tmp_path, 4).resume() == 4


def test_a_validation_that_memory_is_too_small_for_loses_no_step(tmp_path):
    def full(number):
        if number == 4:
            raise torch.OutOfMemoryError("injected\nand more")
        return 1.0

    whole = Run(tmp_path / "a", sample_interval=4)()
    with pytest.raises(UserError, match=r"test: out of memory while .*: injected; .*; saved after step 4 of 7$"):
        Run(tmp_path / "b", score=full, sample_interval=4)()
    resumed = Run(tmp_path / "b", score=full, sample_interval=4)()
    assert resumed.asked == [4, 5, 6]
    assert torch.equal(whole.problem.weights(), resumed.problem.weights())


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    run = partial(Run, tmp_path, sample_interval=1, save_interval=2)

    def dies(number):
        if number == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(before=dies)()
    run()()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == list(range(1, 8))


# ---- losses that are not finite


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_in_fp32_stops_at_once_and_overwrites_nothing(tmp_path, value):
    run = Run(tmp_path, factors={5: value}, scaled=False, save_interval=2)
    with pytest.raises(UserError) as caught:
        run()
    message = str(caught.value)
    assert message.startswith("test: step 6: loss ")
    assert f"the last good checkpoint is {run.checkpoints / 'step_00000004'}" in message
    assert "try a lower learning_rate" in message
    assert "\n" not in message
    assert run.asked == list(range(6))
    assert run.names() == ["step_00000002", "step_00000004"]


def test_a_loss_that_is_not_finite_with_a_gradient_that_is_stops_too(tmp_path):
    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * math.nan

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    problem = Problem(6)
    optimizer, weights = make_adamw(problem.parameters(), FALLING), problem.weights()
    with pytest.raises(UserError, match="loss nan and gradient norm"):
        step(problem, optimizer, scaler(False), losses=lambda rows: {"loss": Lost.apply(problem.losses(rows)["loss"])})
    assert torch.equal(problem.weights(), weights)


def test_an_fp16_loss_that_is_not_finite_stops_after_ten_windows_in_a_row(tmp_path):
    run = Run(tmp_path, factors=dict.fromkeys(range(4, 99), math.nan), save_interval=2)
    with pytest.raises(UserError, match=rf"step 5: the loss was not finite {MAX_LOST} times in a row; the last good "):
        run()
    assert MAX_LOST == 10
    assert run.asked == [0, 1, 2, 3] + [4] * 10
    assert run.names() == ["step_00000002", "step_00000004"]


def test_nine_windows_in_a_row_are_survived_in_fp16(tmp_path):
    lost = Run(tmp_path / "a", factors=dict.fromkeys([*range(2, 11), *range(12, 21)], math.nan))()
    assert lost.asked == [0, 1] + [2] * 10 + [3] * 10 + [4, 5, 6]
    assert torch.equal(lost.problem.weights(), Run(tmp_path / "b")().problem.weights())


def test_gradients_that_overflow_under_a_finite_loss_may_take_longer_since_the_scale_falls_meanwhile(tmp_path):
    overflows = dict.fromkeys(range(2, 2 + MAX_SKIPPED), math.inf)
    assert MAX_SKIPPED > MAX_LOST
    assert Run(tmp_path / "a", gradient_factors=overflows)().asked[-1] == 6
    with pytest.raises(UserError, match=r"step 3: fp16 gradients overflowed \d+ times in a row"):
        Run(tmp_path / "b", gradient_factors=overflows | {2 + MAX_SKIPPED: math.inf})()


# ---- the best


def test_the_best_validation_is_kept_and_found_again_after_a_resume(tmp_path):
    scores = {2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5, 10: 4.0, 12: math.nan, 14: 0.0}

    def run(**options) -> Run:
        return Run(
            tmp_path, score=scores.get, sample_interval=2, save_interval=2, keep_checkpoints=1, **options
        )

    run(total=6)()
    assert run().names() == ["step_00000004_best", "step_00000006"]
    assert load_latest(run().checkpoints).state["best"] == {"metric": "score", "value": 3.0}
    assert run(total=8)().names() == ["step_00000004_best", "step_00000008"]  # better than 6, but not than 4
    assert run(total=14)().names() == ["step_00000010_best", "step_00000014"]


@pytest.mark.parametrize(("choose", "best"), [(min, 1.0), (max, 3.0)])
def test_what_is_better_is_for_the_metric_to_say(choose, best):
    kept = Best("x", choose)
    assert [kept.improved_by({"x": x, "y": 9.0}) for x in (2.0, 2.0, math.nan)] == [True, False, False]
    assert sum(kept.improved_by({"x": x}) for x in (3.0, 1.0, 3.0, 1.0)) == 1
    assert kept.value == best


# ---- asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves_what_a_run_without_it_has_then(tmp_path, number):
    def kill(at):
        if at == 4:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    whole = Run(tmp_path / "a", save_interval=1, keep_checkpoints=9)()
    stopped = Run(tmp_path / "b", before=kill)
    with pytest.raises(Stopped, match=f"{number.name}: saved after step 5 of 7; start again") as caught:
        stopped()
    assert caught.value.status == 128 + number
    assert stopped.asked == [0, 1, 2, 3, 4]
    file = "step_00000005/state.pt"
    assert (whole.checkpoints / file).read_bytes() == (stopped.checkpoints / file).read_bytes()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed = Run(tmp_path / "b")()
    assert resumed.asked == [5, 6]
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_quits_at_once(tmp_path, first):
    def twice(at):
        if at == 4:
            os.kill(os.getpid(), first)
            time.sleep(0)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    run = Run(tmp_path, before=twice, save_interval=3)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.names() == ["step_00000003"]


def test_max_hours_stops_in_time_for_another_step_as_long_as_the_longest(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stop = Stop(max_hours=1)
    for seconds in (600, 1400, 200):
        now[0] += seconds
        assert stop.reason() is None
    now[0] += 1  # 2201 are over, 1400 more would be 3601
    assert stop.reason() == ("max_hours 1 would be over after another step", NOT_DONE)


def test_max_hours_saves_and_the_run_goes_on_later_to_the_same_end(tmp_path):
    whole = Run(tmp_path / "a")()
    for attempt in range(6):  # each time one step: there is no time for another
        with pytest.raises(Stopped, match=rf"max_hours 1e-09 .*saved after step {attempt + 1} of 7") as caught:
            Run(tmp_path / "b", max_hours=1e-9)()
        assert caught.value.status == NOT_DONE
    last = Run(tmp_path / "b", max_hours=1e-9)()  # after the last step there is no other
    assert last.asked == [6]
    assert_same_end(whole, last)


def test_a_signal_in_the_last_step_stops_the_run_too(tmp_path):
    with pytest.raises(Stopped, match="SIGTERM: saved after step 7 of 7"):
        Run(tmp_path, before=lambda at: os.kill(os.getpid(), signal.SIGTERM) if at == 6 else None)()


def test_a_command_that_was_stopped_says_so_and_exits_with_its_status(capsys):
    def main(_):
        raise Stopped("VAE: SIGTERM: saved", 143)

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "VAE: SIGTERM: saved\n"


@pytest.mark.parametrize("hours", [0.0, -1.0, math.nan])
def test_a_run_of_no_hours_is_refused(hours):
    with pytest.raises(ValueError, match="max_hours must be positive"):
        training("x", max_hours=hours)


def test_memory_on_the_cpu_is_said_to_be_the_whole_process(tmp_path, capsys):
    Run(tmp_path, 10)()
    assert re.search(r"images/s, process \d+\.\d\d GiB", capsys.readouterr().err)


@pytest.mark.parametrize("configured", [6, 60])
def test_the_speed_is_that_of_training_without_validation_and_saving_of_images_that_are_there(
    tmp_path, monkeypatch, configured
):
    clock = [0.0]

    def pass_time(seconds: float) -> float:
        clock[0] += seconds
        return 1.0

    monkeypatch.setattr("train.engine.trainer.time.perf_counter", lambda: clock[0])
    run = Run(tmp_path, 20, before=lambda _: pass_time(2), score=lambda _: pass_time(100), sample_interval=5)
    run.config = replace(run.config, batch_size=configured, gradient_accumulation_steps=1)
    run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines if "images_per_second" in line] == [3.0, 3.0]  # of 6 in 2 s
