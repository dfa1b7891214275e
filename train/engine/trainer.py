"""The training loop: a stage's optimizer steps, from the run's last checkpoint to its last step."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from train.base.errors import SEE_MEMCHECK, Stopped, UserError, explaining_out_of_memory, out_of_memory
from train.base.processes import gather, on_main
from train.base.progress import progress, say
from train.base.randomness import batch_rows
from train.base.sound import what_is_wrong
from train.base.units import gib
from train.engine.device import peak_memory
from train.engine.ema import EMA
from train.engine.log import RunLog, Speed
from train.engine.micro_batch import MicroBatch
from train.engine.optim import learning_rate
from train.engine.pace import Pace
from train.engine.progress_page import ProgressPage
from train.engine.stage import Stage
from train.engine.step import NotFinite, mean_losses
from train.engine.stopping import Stop
from train.runs.checkpoint import Unchanged, last_good, load_run, save_checkpoint, set_aside_later

T = TypeVar("T")

LOG_INTERVAL = 10  # optimizer steps
SAVE_SECONDS = 600  # after which a checkpoint is due, however few steps were taken
MAX_LOST = 10  # steps in a row whose fp16 loss is not finite
MAX_SKIPPED = 20  # steps in a row that fp16 overflow may skip: the loss scale has then fallen a million-fold
TO_TRY = (
    "try a lower learning_rate, with which the run goes on from there, or, in another output_dir, longer warmup_steps "
    "or no mixed_precision"
)


class Trainer:
    """A run of a stage: its counters, its moving average, its checkpoints and its log."""

    def __init__(self, stage: Stage, micro_batch: MicroBatch, device: torch.device):
        self.stage, self.training, self.micro_batch, self.device = stage, stage.training, micro_batch, device
        self.train_rows = stage.split.train
        self.total_steps = self.training.total_steps(len(self.train_rows))
        self.step = 0
        self.ema = EMA(stage.model, self.training.ema_decay, self.training.ema_on_cpu)
        self.best = Best(stage.metric, stage.better)
        self.inputs = Unchanged(stage.inputs(), stage.instead())
        self.overflows = Overflows()
        self.checkpoints = Path(self.training.output_dir) / "checkpoints"
        self.predicted_memory: dict[str, dict[str, int]] = {}
        """Bytes at the peak of a step by component, then category; empty where nothing predicts them."""

    def run(self, check_memory: Callable[[], None]) -> None:
        """Take the optimizer steps that are left. `check_memory` is called after each of them."""
        stage, training, learner, micro_batch = self.stage, self.training, self.stage.learner, self.micro_batch
        with self.running() as bar:
            if self.best.owed:
                self.finish_step()
            while self.step < self.total_steps:
                batch = losses = totals = None  # those of an attempt that failed give their memory back
                rows = self.rows_of(self.step)  # B
                batch = stage.draw(self.step, rows)
                rate = learning_rate(training.optimizer, self.step, self.total_steps)
                learner.set_learning_rate(rate)

                losses = partial(stage.losses, batch)
                totals = micro_batch.attempt(learner.accumulate, losses, len(rows), micro_batch.size)
                grad_norm = None if totals is None else micro_batch.attempt(learner.clip)
                if grad_norm is None:
                    micro_batch.halve()
                    continue  # draw the same batch again, and learn from it in smaller pieces
                means = mean_losses(totals)
                if not learner.step(means["loss"], grad_norm):
                    self.overflows.add(self.step, means["loss"])
                    continue  # draw the same batch again, and learn from it at a lower loss scale
                self.ema.update(stage.model)
                means |= stage.after_step(batch, rate, micro_batch)
                self.step += 1
                del batch, losses, totals  # before a validation needs their memory

                check_memory()
                self.pace.look(self.step)
                self.log(bar, len(rows), grad_norm, means)
                self.finish_step()

    # ---- the run around its steps

    def resume(self) -> None:
        """Continue from the newest whole checkpoint. Nothing is written. UserError where it is of another run."""
        self.step = load_run(self.checkpoints, self.total_steps, self.training.length_key, self.state())

    def state(self) -> dict:
        """All that a checkpoint holds."""
        learner = self.stage.learner
        return {"inputs": self.inputs, **self.stage.state(), "ema": self.ema, "optimizer": learner.optimizer,
                "scaler": learner.scaler, "micro_batch": self.micro_batch, "best": self.best}  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[tqdm]:
        """Sets up log, clock and signals around the steps; NotFinite and full memory become a sentence."""
        title = self.stage.title
        on_main(partial(set_aside_later, self.checkpoints, self.step))
        if self.step:
            print(f"{title}: going on after step {self.step} of {self.total_steps}", file=sys.stderr)
        again = self.stage.metric if self.best.owed else None
        self.run_log = RunLog(Path(self.training.output_dir), self.step, again)
        self.speed, self.stop = Speed(), Stop(self.training.max_hours)  # their time begins now
        self.saved_at = time.monotonic()
        self.pace = Pace(title, self.step, self.total_steps)
        self.page = ProgressPage(self.stage, self.step, self.total_steps, self.device)
        try:
            with (
                self.stop.listening(),
                progress(total=self.total_steps, initial=self.step, desc=title, unit="step") as bar,
            ):
                if self.step == 0:  # a place where nothing can be saved shows now, and not after hours
                    self.save(is_best=False)
                yield bar
        except NotFinite as error:
            good = last_good(self.checkpoints)
            raise UserError(f"{title}: step {self.step + 1}: {error}; {good}; {TO_TRY}") from None
        except (RuntimeError, MemoryError) as error:  # where it cannot be tried again, such as after the step itself
            full = out_of_memory(error)
            if not full:
                raise
            good = last_good(self.checkpoints)
            raise UserError(f"{title}: step {self.step + 1}: {full}; {good}; {SEE_MEMCHECK}") from None

    def rows_of(self, step: int) -> Tensor:
        """Which images of the data set a step learns from."""
        seed, batch = self.stage.config.seed, self.training.images_per_step
        return self.train_rows[batch_rows(seed, step, len(self.train_rows), batch)]

    def due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self.total_steps

    def log(self, bar: tqdm, images: int, grad_norm: float, means: dict[str, float]) -> None:
        bar.update()
        self.speed.add(images)
        if self.due(LOG_INTERVAL):
            speed, memory = self.speed.read(), peak_memory(self.device)
            self.run_log.write(
                self.step, **means, grad_norm=grad_norm, images_per_second=speed, peak_memory_bytes=memory
            )
            whose = "" if self.device.type == "cuda" else "process "  # where tensors alone cannot be counted
            figures = f"{speed:.1f} images/s, {whose}{gib(memory)} GiB"
            bar.set_postfix_str(f"loss {means['loss']:.4f}, {figures}", refresh=False)

    def finish_step(self) -> None:
        """Validate, save and stop, where one of them is due."""
        is_best = (self.best.owed or self.due(self.training.sample_interval)) and self.validate()
        stopped, late = self.why_stop()
        if self.due(self.training.save_interval) or is_best or stopped or late:
            saved = self.save(is_best)
        if stopped:
            sentence, status = stopped
            raise Stopped(f"{sentence}{self.shown(sentence, saved)}", status)

    def validate(self) -> bool:
        """Whether the averaged model is the best so far. Where memory for it runs out, the run saves and ends.

        False where a signal asks to stop: the validation is then owed, and the next start begins with it.
        """
        self.best.owed = False
        with self.speed.paused():
            try:
                metrics = on_main(self.validated)
            except NotFinite as error:
                raise self.spoilt(error) from None
            except UserError as error:
                self.save(is_best=False)
                saved = f"saved after step {self.step} of {self.total_steps}"
                raise UserError(f"{self.stage.title}: {error}; {saved}") from None
            if metrics is None:
                self.best.owed = True
                return False
            self.run_log.write(self.step, **metrics)
            self.page.write(self.run_log, self.step, self.predicted_memory)
        return self.best.improved_by(metrics)

    def validated(self) -> dict[str, float] | None:
        wrong = what_is_wrong(self.ema.model.state_dict())
        if wrong:
            raise NotFinite(wrong)
        validate = partial(self.stage.validate, step=self.step, micro_batch=self.micro_batch)
        return self.with_average(lambda averaged: self.stop.unless_asked(partial(validate, averaged)))

    def with_average(self, work: Callable[[nn.Module], T]) -> T:
        """What `work` makes of the averaged model."""
        sentence = f"out of memory while validating and drawing: {{}}; {SEE_MEMCHECK}"
        with explaining_out_of_memory(sentence), self.ema.averaged(self.stage.model) as averaged:
            return work(averaged)

    def shown(self, sentence: str, checkpoint: Path) -> str:
        """Draw curves and pictures of what there is so far; where they are, as the end of the `sentence`.

        All is saved by now: what goes wrong here is said, and a second Ctrl-C leaves the rest out.
        """
        say(f"{sentence}; drawing what the model does so far", sys.stderr)

        def show(averaged: nn.Module) -> str:
            words = self.stage.show(averaged, self.step, checkpoint)
            self.page.write(self.run_log, self.step, self.predicted_memory, stopped=True)
            return words

        try:
            return f"; {on_main(partial(self.with_average, show))}"
        except (UserError, OSError) as error:
            return f"; not drawn: {error}"
        except KeyboardInterrupt:
            return ""

    def save(self, is_best: bool) -> Path:
        with self.speed.paused():
            state = {name: part.state_dict() for name, part in self.state().items()}

            def save() -> Path:
                self.require_sound(state)
                return save_checkpoint(self.checkpoints, self.step, state, self.training.keep_checkpoints, is_best)

            target = on_main(save)
        self.saved_at = time.monotonic()
        return target

    def require_sound(self, state: dict) -> None:
        """UserError where the steps so far have spoilt a weight or a moment: that must not be kept as good."""
        wrong = what_is_wrong(state)
        if wrong:
            raise self.spoilt(wrong)

    def spoilt(self, what: object) -> UserError:
        after = f"{self.stage.title}: after step {self.step}: {what}"
        return UserError(f"{after}; that is not saved: {last_good(self.checkpoints)}; {TO_TRY}")

    def why_stop(self) -> tuple[tuple[str, int] | None, bool]:
        """The sentence and the exit status with which to stop now, and whether the last save is long ago.

        The former are any process's, the latter the first one's, in all of them.
        """
        late = time.monotonic() - self.saved_at > SAVE_SECONDS
        with self.speed.paused():  # for the slowest process
            reasons, lates = zip(*gather((self.stop.reason(self.step == self.total_steps), late)), strict=True)
        reason = next(filter(None, reasons), None)
        saved = f"saved after step {self.step} of {self.total_steps}; start again to go on"
        return reason and (f"{self.stage.title}: {reason[0]}: {saved}", reason[1]), lates[0]


class Best:
    """The best validation so far; `better`, min or max, tells which of two values of the metric that is."""

    def __init__(self, metric: str, better: Callable[..., float]):
        self.metric, self.better = metric, better
        self.value: float | None = None
        self.owed = False
        """Whether a signal came before the validation of the last step."""

    def improved_by(self, metrics: dict[str, float]) -> bool:
        new = metrics[self.metric]
        if not math.isfinite(new) or (self.value is not None and self.better(self.value, new) == self.value):
            return False
        self.value = new
        return True

    def state_dict(self) -> dict:
        return {"metric": self.metric, "value": self.value, "owed": self.owed}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]
        self.owed = state.get("owed", False)  # runs of before owe none


class Overflows:
    """Counts how often in a row one step had to be skipped because of fp16 overflow.

    The loss scale falls meanwhile, which helps gradients that overflow, but not a loss that is not finite itself.
    """

    def __init__(self):
        self.step, self.skipped, self.lost = 0, 0, 0

    def add(self, step: int, loss: float) -> None:
        """Count one more; NotFinite after too many."""
        if step != self.step:
            self.step, self.skipped, self.lost = step, 0, 0
        self.skipped += 1
        self.lost = 0 if math.isfinite(loss) else self.lost + 1
        if self.lost == MAX_LOST:
            raise NotFinite(f"the loss was not finite {self.lost} times in a row")
        if self.skipped > MAX_SKIPPED:
            raise NotFinite(f"fp16 gradients overflowed {self.skipped} times in a row")
