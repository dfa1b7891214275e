"""Traces the first optimizer steps of a scenario, with the training's own stage, learner, EMA and sampler.

Before the first step there are the models and the EMA, whose trace scenarios share. AdamW's state is made in the first
step, after the backward pass, among the memory that the activations have left; so there is a second step, which has
that state from its beginning. Then come the validation and the pictures of the training loop, and one more step in the
memory that these have left. Repetitions that need no further memory are left out: a third micro-batch is like the
second, and a third sampling step is like the second.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import nn

from nets.checkpointing import set_checkpointing
from train.base.processes import leaving_others_out
from train.engine.ema import EMA
from train.engine.micro_batch import MicroBatch
from train.engine.precision import DTYPES, autocast_to
from train.engine.stage import Stage
from train.engine.step import mean_losses
from train.memory.cuda_rules import CudaRules
from train.memory.models import blank_stage, parts_of
from train.memory.optimizer import Scaler, optimizer_on_gpu, share_of_optimizer
from train.memory.scenario import Scenario
from train.memory.trace import NoTrace, Trace
from train.runs.pictures import PICTURE_BATCH
from train.stages.adversary import Adversary
from train.stages.generate import generate
from train.stages.ldm import LDMBatch
from train.stages.vae import VAEBatch, reconstruct


def trace_of(scenario: Scenario) -> Trace:
    """The trace of a run of this scenario, its models included."""
    with leaving_others_out():
        run = prepare(scenario)
        run.take()
    return run.trace


def prepare(scenario: Scenario) -> "Run":
    return Run(scenario, _begin(scenario) if scenario.device != "meta" else _begun_once(scenario.before_steps()))


# ---- before the steps


@dataclass(eq=False)
class Beginning:
    """A stage before its first step, with its EMA, and the trace of how they were made."""

    stage: Stage
    trace: Trace | NoTrace
    trained: list[nn.Parameter]
    ema: EMA | None
    averaged: nn.Module  # the EMA's model, or without one the stage's


def _begin(scenario: Scenario) -> Beginning:
    stage = blank_stage(scenario)
    parts, trained = parts_of(stage), list(stage.learner.parameters) if scenario.trains else []
    # An EMA on the CPU swaps its values with the weights for validation, so it takes no GPU memory.
    ema = EMA(stage.model, scenario.training.ema_decay) if trained and not scenario.training.ema_on_cpu else None
    parts |= {"EMA": ema.model} if ema else {}
    trace = NoTrace() if scenario.device == "cuda" else Trace(parts, CudaRules(), scenario.device)
    with trace:
        trace.label_weights()
    return Beginning(stage, trace, trained, ema, ema.model if ema else stage.model)


_begun_once = lru_cache(maxsize=8)(_begin)


# ---- the steps


class Run:
    """The first optimizer steps and what comes between them, on the meta device or with real tensors."""

    def __init__(self, scenario: Scenario, beginning: Beginning):
        self.scenario, self.beginning, self.stage = scenario, beginning, beginning.stage
        self.device = torch.device(scenario.device)
        self.rules = CudaRules(scenario.attention)
        self.trace = beginning.trace.continued(self.rules)
        self.stage.config = scenario.config
        # DDP keeps gradients between steps, so even the first micro-batch adds to existing ones, like a second.
        pieces = max(scenario.training.gradient_accumulation_steps, 1 if scenario.processes == 1 else 2)
        self.traced_images = scenario.micro_batch * min(pieces, 2)  # the first of the batch
        for owner in self.learning():
            parameters = list(owner.learner.parameters)
            own = share_of_optimizer(parameters, scenario.ranks) if owner is self.stage else parameters
            scaler = Scaler(self.trace, self.device, scenario.training.mixed_precision == "fp16")
            optimizer, lean = optimizer_on_gpu(own, scenario), scenario.training.lean_activations
            owner.learner = replace(
                owner.learner, optimizer=optimizer, scaler=scaler, autocast=self.autocast, lean=lean
            )
            clear_gradients(parameters)  # of an earlier trace
        set_checkpointing(self.stage.model, scenario.training.gradient_checkpointing)

    def learning(self) -> list[Stage | Adversary]:
        """What has a learner: the stage, and its adversary if there is one; of generating, nothing."""
        adversary = getattr(self.stage, "adversary", None)
        return ([self.stage, adversary] if adversary else [self.stage]) if self.scenario.trains else []

    def take(self) -> None:
        """Run the steps, then validation and pictures."""
        with self.trace:
            {"vae": self._vae, "ldm": self._ldm, "sample": self._sample}[self.scenario.stage]()

    def in_precision(self, name: str):
        """A context in which models run in this precision."""
        if self.device.type == "cuda":
            return autocast_to(self.device, name)()
        return self.rules.autocast(None if name == "no" else DTYPES[name])

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The learner's autocast context, which also sets the phases of the trace."""
        with self.trace.during("forward"):
            with self.in_precision(self.scenario.training.mixed_precision):
                yield
            self.trace.end_forward()
        self.trace.phase = "backward"

    def draw(self, step: int) -> LDMBatch | VAEBatch:
        """The whole batch of all processes, as each of them draws it."""
        rows = torch.zeros(self.scenario.images_per_step * self.scenario.processes, dtype=torch.int64)
        with self.trace.during("inputs"):
            return self.stage.draw(step, rows)

    def learn(self, batch: LDMBatch | VAEBatch) -> None:
        """The trainer's step."""
        learner, ema = self.stage.learner, self.beginning.ema
        self.stage.model.train()  # a validation without an EMA leaves it in eval mode
        with self.trace.during("inputs"):  # makes the scaler's tensors, apart from the activations
            learner.scaler.scale(torch.zeros((), device=self.device))
        clear_gradients(self.beginning.trained)  # `accumulate` does, but a sharded optimizer has not all of them here
        with self.trace.during("forward"):
            losses = partial(self.stage.losses, batch)
            totals = learner.accumulate(losses, self.traced_images, self.scenario.micro_batch)
            grad_norm = learner.clip()
            learner.step(mean_losses(totals)["loss"], grad_norm)
        self.trace.label_learned(learner)
        if ema:
            with self.trace.during("EMA"):
                ema.update(self.stage.model)

    @contextmanager
    def between(self, phase: str) -> Iterator[None]:
        """A part of the training loop between steps."""
        with self.trace.during(phase), torch.no_grad():
            yield

    # ---- the stages

    def _ldm(self) -> None:
        scenario, stage = self.scenario, self.stage
        cached, size = scenario.config.latents.cache_latents, scenario.micro_batch
        moments = torch.zeros(1, 2, *stage.source.shape) if cached else None
        stage.use_latents(moments, partial(self.in_precision, "no"))
        for step in (0, 1):
            self.learn(self.draw(step))
        if not scenario.validates:
            return
        averaged = self.beginning.averaged.eval()
        with self.between("validation"):
            rows = torch.zeros(size, dtype=torch.int64)
            stage.losses(stage.draw_validation(rows, rows.to(self.device)), slice(0, size), averaged)
        with self.between("pictures"):
            self._generate(averaged, PICTURE_BATCH)
        self.learn(self.draw(2))

    def _vae(self) -> None:
        scenario, images = self.scenario, (PICTURE_BATCH, *self.scenario.config.image_shape)
        begins = scenario.config.vae_loss.adversarial_start if self.stage.adversary else 0
        for step in dict.fromkeys((0, begins, begins + 1)):
            self._vae_step(step)
        if not scenario.validates:
            return
        with self.between("pictures"):
            reconstruct(self.beginning.averaged, torch.zeros(images).to(self.device))
        self._vae_step(begins + 2)

    def _vae_step(self, step: int) -> None:
        scenario, batch = self.scenario, self.draw(step)
        adversary, untraced = batch.adversary, max(scenario.images_per_step - self.traced_images, 0)
        if adversary:
            with self.trace.during("inputs"):
                adversary.fakes.append(torch.zeros(untraced, *batch.images.shape[1:]).to(self.device))
        self.learn(batch)
        if adversary:
            with self.trace.during("forward"):
                learned = replace(batch, images=batch.images[: self.traced_images])
                self.stage.after_step(learned, 0.0, MicroBatch(scenario.training, scenario.micro_batch))
            self.trace.label_learned(adversary.learner)

    def _sample(self) -> None:
        self.stage.model.eval()
        with self.trace.during("sampling"):
            self._generate(self.stage.model, self.scenario.micro_batch)

    def _generate(self, denoiser: nn.Module, batch_size: int) -> None:
        config = self.scenario.config
        steps = min(config.sampling.steps, 2)
        sampling = replace(config.sampling, steps=steps, spacing="trailing", guidance_interval=None)
        images = [(0, number) for number in range(batch_size)]
        generate(denoiser, self.stage.vae, self.stage.schedule, sampling, images, config.seed, batch_size)


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None
