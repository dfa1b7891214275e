"""The trainer counts steps that were taken, keeps the best, and ends, however it ends, with all its work saved."""

import dataclasses
import errno
import itertools
import json
import math
import os
import re
import signal
import stat
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nets.unet import UNet2DConditionModel
from tests.base.syncing import refuse_to_sync
from tests.engine.problem import CPU, NO_LIMIT, Problem, adamw_learner, scaler
from tests.tiny import PATH, make_images
from train import ldm, vae
from train.base.errors import Stopped, UserError
from train.config.sections import OptimConfig, TrainingConfig
from train.data.split import Split
from train.engine import trainer as trainer_module
from train.engine.micro_batch import MicroBatch
from train.engine.optim import learning_rate
from train.engine.stage import Stage
from train.engine.stopping import NOT_DONE, WISHES
from train.engine.trainer import MAX_LOST, MAX_SKIPPED, Best, Trainer
from train.runs.checkpoint import load_latest

ROOT = Path(__file__).parents[2]
FALLING = OptimConfig(learning_rate=0.01, warmup_steps=2)
NOTHING = lambda *_: None  # noqa: E731


def training(folder, **options) -> TrainingConfig:
    cut = {"num_epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 3}
    return TrainingConfig(str(folder), **cut | {"ema_decay": 0.9, "optimizer": FALLING} | options)


@dataclass(frozen=True, eq=False)
class ProblemBatch:
    rows: Tensor  # (B,)
    attempt: int


class ProblemStage:
    """A stage (train/engine/stage.py) that learns the six samples of a `Problem`, all of them in each step.

    Its attempts (counted from 0) multiply the loss by `factors`, their gradient by `gradient_factors`. `before` is
    called before each attempt with the step's number, `full` in each micro-batch with the attempt's number and its
    images; `score` gives the metric of a validation. `data` stands for the hash of the samples.
    """

    name, title, metric, better, curves = "ldm", "test", "score", max, (("loss",),)
    pictures, picture_of = "samples", Stage.picture_of

    def __init__(self, training, factors, gradient_factors, before, full, score, scaled, max_grad_norm, data):
        self.problem, self.training, self.config = Problem(6), training, SimpleNamespace(seed=0)
        self.factors, self.gradient_factors = factors or {}, gradient_factors or {}
        self.before, self.full, self.score = before, full, score
        self.model = self.problem.model
        self.learner = adamw_learner(
            self.problem, FALLING, scaler(scaled, init_scale=2.0**20), max_grad_norm=max_grad_norm
        )
        self.split = Split(train=torch.arange(6), validation=torch.arange(0), held_out=torch.arange(0))
        self.attempts, self.hashed, self.data = itertools.count(), 0, data
        self.asked, self.validated, self.shown, self.rates = [], [], [], []

    def draw(self, step: int, rows: Tensor) -> ProblemBatch:
        self.asked.append(step)
        self.before(step)
        return ProblemBatch(rows, next(self.attempts))

    def losses(self, batch: ProblemBatch, part: slice) -> dict[str, Tensor]:
        factor = self.gradient_factors.get(batch.attempt, 1.0)
        loss = self.problem.losses(batch.rows[part])["loss"] * self.factors.get(batch.attempt, 1.0)
        self.full(batch.attempt, len(loss))
        loss.register_hook(lambda gradient: gradient * factor)
        return {"loss": loss}

    def after_step(self, batch: ProblemBatch, learning_rate: float, micro_batch: MicroBatch) -> dict[str, float]:
        (group,) = self.learner.optimizer.param_groups
        assert group["lr"] == learning_rate
        self.rates.append(learning_rate)
        return {"after": 0.5}

    def validate(self, averaged, step: int, micro_batch: MicroBatch) -> dict[str, float]:
        self.validated.append(step)
        return {"score": self.score(step)}

    def show(self, averaged, step: int, checkpoint: Path) -> str:
        self.shown.append((step, load_latest(checkpoint.parent).step))
        return f"shown beside {checkpoint.name}"

    def state(self) -> dict:
        return {"model": self.model}

    def inputs(self) -> dict[str, str]:
        self.hashed += 1
        return {"data": self.data}


    def instead(self) -> dict[str, str]:
        return {}


class Run:
    """A small training of `total` steps, started in `folder` or going on there."""

    def __init__(self, folder, total=7, factors=None, gradient_factors=None, before=NOTHING, full=NOTHING,
                 score=lambda _: 1.0, scaled=True, max_grad_norm=NO_LIMIT, data="samples", **options):  # fmt: skip
        config = training(folder, **{"num_epochs": total} | options)
        self.stage = ProblemStage(
            config, factors, gradient_factors, before, full, score, scaled, max_grad_norm, data
        )
        self.trainer = Trainer(self.stage, MicroBatch(config, config.batch_size), CPU)
        self.problem, self.ema, self.checkpoints = self.stage.problem, self.trainer.ema, self.trainer.checkpoints
        self.asked, self.validated, self.rates = self.stage.asked, self.stage.validated, self.stage.rates
        self.checked: list[int] = []
        """The steps after which memory was looked at."""

    def resume(self) -> int:
        self.trainer.resume()
        return self.trainer.step

    def train(self) -> None:
        self.trainer.run(lambda: self.checked.append(self.trainer.step))

    def __call__(self) -> "Run":
        self.resume()
        self.train()
        return self

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())


def logged(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


def test_skipped_batches_move_no_weights_average_rate_or_counter(tmp_path):
    whole = Run(tmp_path / "a")()
    skipping = Run(tmp_path / "b", gradient_factors=dict.fromkeys({0, 3, 4}, math.inf))()
    assert whole.asked == list(range(7))
    assert skipping.asked == [0, 0, 1, 2, 2, 2, 3, 4, 5, 6]
    assert whole.rates == skipping.rates == [learning_rate(FALLING, number, 7) for number in range(7)]
    assert torch.equal(whole.problem.weights(), skipping.problem.weights())
    assert whole.ema.updates == skipping.ema.updates == 7
    for ours, theirs in zip(skipping.ema.model.parameters(), whole.ema.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.checked == skipping.checked == list(range(1, 8))  # memory is looked at after steps that are taken


def test_intervals_count_only_the_optimizer_steps_that_are_taken(tmp_path):
    overflows = dict.fromkeys({1, 5}, math.inf)
    run = Run(tmp_path, 8, overflows, sample_interval=3, save_interval=2, keep_checkpoints=9)()
    assert run.validated == [3, 6, 8]
    assert [name[5:13] for name in run.names()] == [f"{number:08d}" for number in (0, 2, 3, 4, 6, 8)]  # 3 is the best


def test_a_run_started_again_resumes_and_ends_in_the_same_bytes(tmp_path):
    def dies(number):
        if number == 5:
            raise ZeroDivisionError

    whole = Run(tmp_path / "a", save_interval=3)()
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "b", before=dies, save_interval=3)()
    resumed = Run(tmp_path / "b", save_interval=3)()
    assert resumed.asked == [3, 4, 5, 6]
    assert_same_end(whole, resumed)


def test_a_run_with_more_steps_than_are_asked_for_is_refused(tmp_path):
    Run(tmp_path, 7)()
    assert Run(tmp_path, 7).resume() == 7
    taken = "the run has already taken 7 steps, more than"
    with pytest.raises(UserError, match=f"{taken} the 5 asked for; raise num_epochs"):
        Run(tmp_path, 5).resume()
    with pytest.raises(UserError, match=f"{taken} the 6 asked for; raise num_steps"):
        Run(tmp_path, None, num_steps=6).resume()


def test_as_many_steps_are_the_same_training_as_the_epochs(tmp_path):
    """The learning rate's fall included; and a run goes on when it is told the same length in the other way."""

    def dies(number):
        if number == 5:
            raise ZeroDivisionError

    epochs, steps = Run(tmp_path / "a", 7, save_interval=3)(), Run(tmp_path / "b", None, num_steps=7, save_interval=3)()
    assert steps.rates == epochs.rates
    assert_same_end(epochs, steps)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "c", 7, before=dies, save_interval=3)()
    assert_same_end(epochs, Run(tmp_path / "c", None, num_steps=7, save_interval=3)())


def test_a_run_on_other_inputs_is_refused(tmp_path):
    Run(tmp_path, 4)()
    with pytest.raises(UserError, match="step_00000004_best: the data is not what this run began with"):
        Run(tmp_path, 4, data="others").resume()


def test_inputs_are_hashed_once_and_not_for_each_checkpoint(tmp_path):
    assert Run(tmp_path, save_interval=1)().stage.hashed == 1


def test_a_damaged_checkpoint_stays_until_training_goes_on(tmp_path):
    run = Run(tmp_path, 4, save_interval=2)()
    (tmp_path / "checkpoints/step_00000004_best/state.pt").write_bytes(b"")
    again = Run(tmp_path, 4, save_interval=2)
    before = run.names()
    assert (again.resume(), again.names()) == (2, before)
    again.train()
    assert again.names() == before  # it was saved once more, and what was damaged has gone
    assert Run(tmp_path, 4).resume() == 4


def test_a_validation_that_memory_is_too_small_for_loses_no_step(tmp_path):
    def full(number):
        if number == 4:
            raise torch.OutOfMemoryError("injected\nand more")
        return 1.0

    whole = Run(tmp_path / "a", sample_interval=4)()
    with pytest.raises(UserError, match=r"^test: out of memory while .*: injected; .*; saved after step 4 of 7$"):
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
    assert [line["step"] for line in logged(tmp_path) if "score" in line] == list(range(1, 8))
    assert [line["after"] for line in logged(tmp_path) if "loss" in line] == [0.5]  # the seventh step's


# ---- losses that are not finite


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_not_finite_in_fp32_stops_and_overwrites_nothing(tmp_path, value):
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


def test_ten_fp16_losses_not_finite_in_a_row_stop_the_run(tmp_path):
    run = Run(tmp_path, factors=dict.fromkeys(range(4, 99), math.nan), save_interval=2)
    with pytest.raises(UserError, match=rf"step 5: the loss was not finite {MAX_LOST} times in a row; the last good "):
        run()
    assert MAX_LOST == 10
    assert run.asked == [0, 1, 2, 3] + [4] * 10
    assert run.names() == ["step_00000002", "step_00000004"]


def test_nine_fp16_losses_not_finite_in_a_row_are_survived(tmp_path):
    lost = Run(tmp_path / "a", factors=dict.fromkeys([*range(2, 11), *range(12, 21)], math.nan))()
    assert lost.asked == [0, 1] + [2] * 10 + [3] * 10 + [4, 5, 6]
    assert torch.equal(lost.problem.weights(), Run(tmp_path / "b")().problem.weights())


def test_a_finite_loss_begins_the_count_of_lost_ones_anew(tmp_path):
    lost = dict.fromkeys([*range(2, 11), *range(12, 21)], math.nan)
    run = Run(tmp_path, factors=lost, gradient_factors={11: math.inf})()
    assert run.asked == [0, 1] + [2] * 20 + [3, 4, 5, 6]


def test_gradients_may_overflow_longer_than_losses_before_a_stop(tmp_path):
    overflows = dict.fromkeys(range(2, 2 + MAX_SKIPPED), math.inf)
    assert MAX_SKIPPED > MAX_LOST
    assert Run(tmp_path / "a", gradient_factors=overflows)().asked[-1] == 6
    with pytest.raises(UserError, match=r"step 3: fp16 gradients overflowed \d+ times in a row"):
        Run(tmp_path / "b", gradient_factors=overflows | {2 + MAX_SKIPPED: math.inf})()


def poison(part: str, value: float):
    """Something that a step has done: to the weights, to the average, or to the optimizer's moments."""

    def spoil(run: "Run") -> None:
        with torch.no_grad():
            if part == "moments":
                next(iter(run.stage.learner.optimizer.state.values()))["exp_avg_sq"].fill_(value)
            else:
                next((run.problem.model if part == "weights" else run.ema.model).parameters()).fill_(value)

    return spoil


@pytest.mark.parametrize(
    ("part", "value", "name"),
    [
        ("weights", math.nan, "model.0.weight holds values that are no finite numbers"),
        ("weights", 1e20, "model.0.weight holds 1e+20, which no trained weight comes near"),
        ("average", math.inf, "0.weight holds values that are no finite numbers"),
        ("average", -1e7, "0.weight holds 1e+07, which no trained weight comes near"),
        ("moments", math.inf, "optimizer.state.0.exp_avg_sq holds values that are no finite numbers"),
    ],
)
@pytest.mark.parametrize("validates", [False, True])
def test_what_a_step_has_spoilt_is_neither_kept_nor_sampled_from(tmp_path, part, value, name, validates):
    run = Run(tmp_path, save_interval=2, sample_interval=4 if validates else 99)
    run.resume()

    def check() -> None:
        if run.trainer.step == 4:
            poison(part, value)(run)

    with pytest.raises(UserError) as caught:
        run.trainer.run(check)
    message = str(caught.value)
    of = "ema.model." if part == "average" and not validates else ""
    assert message.startswith(f"test: after step 4: {of}{name}")
    assert f"the last good checkpoint is {run.checkpoints / 'step_00000002'}" in message
    assert "try a lower learning_rate" in message
    assert run.names() == ["step_00000000", "step_00000002"]
    if part == "average":
        assert run.validated == []


def test_a_weight_decay_that_blows_up_ends_before_it_is_kept(tmp_path):
    """Losses and gradients stay finite for a while; a step multiplies the weights by a hundred."""
    decaying = dataclasses.replace(FALLING, weight_decay=1e4)
    run = Run(tmp_path, save_interval=2, optimizer=decaying, scaled=False)
    for group in run.stage.learner.optimizer.param_groups:
        group["weight_decay"] = decaying.weight_decay
    with pytest.raises(UserError, match=r"^test: after step \d: model\..* which no trained weight comes near; that is"):
        run()


# ---- the best


def test_the_best_validation_is_kept_and_found_after_a_resume(tmp_path):
    scores = {2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5, 10: 4.0, 12: math.nan, 14: 0.0}

    def run(**options) -> Run:
        return Run(tmp_path, score=scores.get, sample_interval=2, save_interval=2, keep_checkpoints=1, **options)

    run(total=6)()
    assert run().names() == ["step_00000004_best", "step_00000006"]
    assert load_latest(run().checkpoints).state["best"] == {"metric": "score", "value": 3.0, "owed": False}
    assert run(total=8)().names() == ["step_00000004_best", "step_00000008"]  # better than 6, but not than 4
    assert run(total=14)().names() == ["step_00000010_best", "step_00000014"]


@pytest.mark.parametrize(("choose", "best"), [(min, 1.0), (max, 3.0)])
def test_what_is_better_is_for_the_metric_to_say(choose, best):
    kept = Best("x", choose)
    assert [kept.improved_by({"x": x, "y": 9.0}) for x in (2.0, 2.0, math.nan)] == [True, False, False]
    assert sum(kept.improved_by({"x": x}) for x in (3.0, 1.0, 3.0, 1.0)) == 1
    assert kept.value == best


# ---- asked to stop


@pytest.mark.parametrize("number", WISHES)
def test_a_signal_finishes_the_step_and_saves_the_same_bytes(tmp_path, number):
    def kill(at):
        if at == 4:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in WISHES]
    whole = Run(tmp_path / "a", save_interval=1, keep_checkpoints=9)()
    stopped = Run(tmp_path / "b", before=kill)
    with pytest.raises(Stopped, match=f"{number.name}: saved after step 5 of 7; start again") as caught:
        stopped()
    assert caught.value.status == 128 + number
    assert stopped.asked == [0, 1, 2, 3, 4]
    file = "step_00000005/state.pt"
    assert (whole.checkpoints / file).read_bytes() == (stopped.checkpoints / file).read_bytes()
    assert [signal.getsignal(n) for n in WISHES] == handlers
    resumed = Run(tmp_path / "b")()
    assert resumed.asked == [5, 6]
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("at", ["the step before", "the validation"])
@pytest.mark.parametrize("last", [4, 7])
def test_a_validation_does_not_delay_the_save_and_is_made_up_for(tmp_path, at, last):
    """torchrun kills 30 seconds after a signal; a validation may take longer. It is the best one, of step 4 of 7."""
    asked_for_it = []

    def ask() -> None:
        if not asked_for_it:
            asked_for_it.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    def score(step: int) -> float:
        if step == last and at == "the validation":
            ask()
            time.sleep(0)  # where a validation works on
            pytest.fail("the validation went on")
        return float(step)

    def before(step: int) -> None:
        if step == last - 1 and at == "the step before":
            ask()

    run = partial(Run, total=7, sample_interval=4, save_interval=2)
    whole = run(tmp_path / "a", score=float)()
    stopped = run(tmp_path / "b", before=before, score=score)
    with pytest.raises(Stopped, match=f"SIGTERM: saved after step {last} of 7"):
        stopped()
    assert stopped.names()[-1] == f"step_{last:08d}"
    resumed = run(tmp_path / "b", score=float)()
    assert resumed.validated == [4, 7][last == 7 :]
    assert resumed.asked == list(range(last, 7))
    assert resumed.names() == whole.names()
    assert_same_end(whole, resumed)
    assert [line["step"] for line in logged(tmp_path / "b") if "score" in line] == [4, 7]


def test_a_made_up_validation_that_is_cut_off_is_logged_once(tmp_path, monkeypatch):
    run = partial(Run, tmp_path, total=6, sample_interval=2, score=float)
    with pytest.raises(Stopped):
        run(before=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)()

    def killed(*_) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_checkpoint", killed)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run()()
    run()()
    assert [line["step"] for line in logged(tmp_path) if "score" in line] == [2, 4, 6]


def test_a_place_where_nothing_can_be_saved_shows_before_the_first_step(tmp_path, monkeypatch):
    run = Run(tmp_path)
    refuse_to_sync(monkeypatch, stat.S_ISDIR, errno.EIO)
    with pytest.raises(UserError, match=r"step_00000000: cannot be saved \(Input/output error\); "):
        run()
    assert run.asked == []


def test_where_folders_cannot_be_synced_a_run_saves_and_goes_on(tmp_path, monkeypatch):
    def dies(number) -> None:
        if number == 5:
            raise ZeroDivisionError

    whole = Run(tmp_path / "a", save_interval=2)()
    refuse_to_sync(monkeypatch, stat.S_ISDIR, errno.EINVAL)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "b", before=dies, save_interval=2)()
    resumed = Run(tmp_path / "b", save_interval=2)()
    assert resumed.asked == [4, 5, 6]
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("why", ["a signal", "max_hours"])
def test_a_stop_in_order_draws_what_is_saved_and_names_it(tmp_path, why):
    number = signal.SIGTERM if why == "a signal" else 0  # 0 only asks whether the process is there
    run = Run(tmp_path, before=lambda _: os.kill(os.getpid(), number), max_hours=None if number else 1e-9)
    with pytest.raises(Stopped, match="saved after step 1 of 7; start again to go on; shown beside step_00000001"):
        run()
    assert run.stage.shown == [(1, 1)]
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("wrong", [KeyboardInterrupt(), torch.OutOfMemoryError("full"), OSError("full")])
def test_a_stop_stays_one_where_nothing_can_be_drawn(tmp_path, wrong):
    run = Run(tmp_path, max_hours=1e-9)

    def show(*_) -> str:
        raise wrong

    run.stage.show = show
    with pytest.raises(Stopped, match="saved after step 1 of 7; start again to go on") as caught:
        run()
    assert caught.value.status == NOT_DONE
    assert ("full" in str(caught.value)) == (not isinstance(wrong, KeyboardInterrupt))


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
    assert run.names() == ["step_00000000", "step_00000003"]


def test_max_hours_begin_with_the_first_step(tmp_path, monkeypatch):
    """To encode all latents before it, for example, takes nothing away from them, and is no long step."""
    now = [1000.0]

    def a_minute(_) -> None:
        now[0] += 60

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    run = Run(tmp_path, before=a_minute, max_hours=0.1)  # six minutes
    run.resume()
    now[0] += 3000
    with pytest.raises(Stopped, match="saved after step 6 of 7"):
        run.train()


def test_max_hours_saves_and_the_run_resumes_to_the_same_end(tmp_path):
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


def test_steps_that_take_long_are_saved_by_time(tmp_path, monkeypatch):
    def dies(step: int) -> None:
        if step == 5:
            raise ZeroDivisionError

    whole = Run(tmp_path / "a")()
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", -1)
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "b", before=dies)()
    resumed = Run(tmp_path / "b")()
    assert resumed.asked == [5, 6]
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("hours", [0.0, -1.0, math.nan])
def test_a_run_of_no_hours_is_refused(hours):
    with pytest.raises(UserError, match="max_hours must be positive"):
        training("x", max_hours=hours)


def test_memory_on_the_cpu_is_said_to_be_the_whole_process(tmp_path, capsys):
    Run(tmp_path, 10)()
    assert re.search(r"images/s, process \d+\.\d\d GiB", capsys.readouterr().err)


@pytest.mark.parametrize("configured", [6, 60])
def test_speed_leaves_out_validation_and_counts_only_real_images(tmp_path, monkeypatch, configured):
    clock = [0.0]

    def pass_time(seconds: float) -> float:
        clock[0] += seconds
        return 1.0

    def save(*args) -> None:
        pass_time(1000)

    monkeypatch.setattr("train.engine.log.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    cut = {"batch_size": configured, "gradient_accumulation_steps": 1}
    Run(tmp_path, 20, before=lambda _: pass_time(2), score=lambda _: pass_time(100), sample_interval=5, **cut)()
    speeds = [line["images_per_second"] for line in logged(tmp_path) if "images_per_second" in line]
    assert speeds == [3.0, 3.0]  # of 6 in 2 s


# ---- memory that runs out


def test_a_checkpoint_that_memory_is_too_small_for_is_not_of_another_model(tmp_path, monkeypatch):
    Run(tmp_path, 4)()
    run = Run(tmp_path, 4)

    def full(state):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(run.stage.learner.optimizer, "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        run.resume()


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_step_retried_after_out_of_memory_is_the_very_same(tmp_path, at):
    """From attempt `at` on, two images fit at once, and not six or three; or so few are asked for."""
    def full(attempt: int, images: int) -> None:
        if attempt >= at and images > 2:
            raise torch.OutOfMemoryError("injected")

    def dies(number):
        if number == at:
            raise ZeroDivisionError

    whole = {"batch_size": 6, "gradient_accumulation_steps": 1}
    options = {"auto_batch": True, "save_interval": 1, "max_grad_norm": 0.1}
    short = Run(tmp_path / "a", full=full, **whole, **options)()
    assert short.asked == [*range(at), at, at, *range(at, 7)]
    assert short.rates == [learning_rate(FALLING, number, 7) for number in range(7)]
    assert short.checked == list(range(1, 8))
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "b", before=dies, **whole, **options)()
    assert_same_end(short, Run(tmp_path / "b", **options)())  # two at once


def test_memory_that_cannot_be_tried_for_again_ends_in_a_sentence(tmp_path, monkeypatch):
    """Before or after the step, of which a half may be done: with the step's number, and with what is kept."""
    def full(number):
        if number == 5:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nand more")

    said = r"^test: step 6: out of memory: cuDNN error: CUDNN_STATUS_ALLOC_FAILED; the last good checkpoint is .*05; "
    with pytest.raises(UserError, match=said):
        Run(tmp_path / "before", before=full, save_interval=5)()
    after = Run(tmp_path / "after", save_interval=5)
    monkeypatch.setattr(after.ema, "update", lambda model: full(after.trainer.step))
    with pytest.raises(UserError, match=said):
        after()


def test_a_resumed_run_begins_with_the_size_that_fitted(tmp_path):
    def full(attempt: int, images: int) -> None:
        assert attempt < 2 or images <= 3
        if images > 3:
            raise torch.OutOfMemoryError("injected")

    def dies(number):
        if number == 4:
            raise ZeroDivisionError

    options = {"batch_size": 6, "gradient_accumulation_steps": 1, "auto_batch": True, "save_interval": 2}
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path, full=full, before=dies, **options)()
    resumed = Run(tmp_path, full=lambda _, images: full(9, images), **options)()
    assert resumed.asked == [4, 5, 6]


# ---- the way from a command to the network


def test_at_most_eight_frames_lie_between_command_and_unet(tmp_path, monkeypatch):
    """In a training step, from `train.ldm.main` to `UNet2DConditionModel.forward`; only this project's own."""
    def own(frame: traceback.FrameSummary) -> bool:
        path = Path(frame.filename)
        return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("train", "nets", "diffusion")

    whole, stacks = UNet2DConditionModel.forward, []

    def forward(self, x, *args):
        if torch.is_grad_enabled() and not x.is_meta:  # as in training, not in validation or the memory account
            stacks.append([frame.name for frame in traceback.extract_stack() if own(frame)])
        return whole(self, x, *args)

    flags = ["--config", str(PATH), "--data_dir", str(make_images(tmp_path / "data"))]
    vae.main([*flags, "--output_dir", str(tmp_path / "v"), "--num_epochs", "1"])
    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    path = ["--vae_path", str(tmp_path / "v/final_model"), "--num_epochs", "1"]
    ldm.main([*flags, "--output_dir", str(tmp_path / "l"), *path])
    assert len(stacks) == 4  # 15 training images, 4 in a step
    for names in stacks:
        assert names[0] == "main"
        assert len(names) + 1 <= 8, names  # `forward` itself is this test's here
