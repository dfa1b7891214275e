"""What stands on the card when a step begins, and the step itself, as train/ldm.py and train/vae.py take it.

Before the first step: the models, the moving average, and AdamW's state, which a run's first step brings into
being. That takes as long to trace as a step does, and is the same whatever the batch, the precision and the
checkpointing: it is traced once for all runs that have it in common.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from nets.checkpointing import set_checkpointing
from train.engine.device import DTYPES, autocast
from train.engine.ema import EMA
from train.engine.optim import OptimConfig, make_adamw
from train.engine.step import accumulate_gradients, update_weights
from train.memory.cuda_rules import Card
from train.memory.scenario import Setting
from train.memory.trace import Trace
from train.stages.vae_loss import Adversary

TRACED_MICRO_BATCHES = 2  # a third is like the second


class Unrecorded:
    """In a trace's place where a card runs a stage in earnest, and torch counts the bytes."""

    phase = ""

    def during(self, phase: str):
        return nullcontext()

    def end_forward(self) -> None:
        pass

    def label(self, tensors, category: str, module: str | None = None, like: Tensor | None = None) -> None:
        pass

    def label_weights(self) -> None:
        pass

    def label_gradients(self, parameters) -> None:
        pass

    def continued(self, card: Card) -> "Unrecorded":
        return self

    def again(self, known: dict, key: Hashable, part: Callable[[], dict]) -> dict:
        return part()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass


@dataclass(eq=False)
class Standing:
    """Models, their average and optimizers between two steps, and the trace of how they came there."""

    parts: dict[str, nn.Module]
    model: nn.Module
    """What is trained; for sampling, what samples."""
    trace: Trace | Unrecorded
    trained: list[nn.Parameter]
    ema: EMA | None = None
    optimizer: torch.optim.Optimizer | None = None
    adversary: Adversary | None = None
    windows: dict = field(default_factory=dict)
    """Windows, from forward to gradients, as first traced: the same whatever the optimizer and the average do."""
    between: dict = field(default_factory=dict)
    """What is run between steps (validation, pictures), as first traced: the same after every step."""

    @property
    def averaged(self) -> nn.Module:
        return self.ema.model if self.ema else self.model


def stand(
    setting: Setting, parts: dict[str, nn.Module], model: nn.Module, trained: list[nn.Parameter],
    adversary: Adversary | None = None,
) -> Standing:  # fmt: skip
    """Bring these models to where a step begins. With nothing to train they only stand there."""
    # On the CPU it changes places with the weights to validate: nothing of it is ever on the card.
    ema = EMA(model, setting.training.ema_decay) if trained and not setting.training.ema_on_cpu else None
    if ema:
        parts = {**parts, "EMA": ema.model}
    trace = Unrecorded() if setting.device == "cuda" else Trace(parts, Card(), setting.device)
    standing = Standing(parts, model, trace, trained, ema, None, adversary)
    with trace:
        trace.label_weights()
        if trained:
            config = setting.training.optimizer
            standing.optimizer = _adamw(_share(trained, setting.ranks), config, setting)
            _begin(standing.optimizer, trace, setting.device)
        if adversary:
            adversary.optimizer = _adamw(list(adversary.discriminator.parameters()), config, setting)
            _begin(adversary.optimizer, trace, setting.device)
    return standing


class Run:
    """One optimizer step of what stands there, on the meta device or in earnest; entered, it is traced."""

    def __init__(self, setting: Setting, standing: Standing):
        training = self.training = setting.training
        self.standing, self.device = standing, torch.device(setting.device)
        self.card = Card(setting.attention)
        self.trace = standing.trace.continued(self.card)
        # DDP keeps the gradients in its buckets from step to step: they are there in the first micro-batch too, as
        # they are in any second one.
        pieces = max(training.gradient_accumulation_steps, 1 if setting.processes == 1 else 2)
        self.window = training.batch_size * min(pieces, TRACED_MICRO_BATCHES)
        if self.device.type == "cuda":
            self.precision = partial(autocast, self.device)
        else:
            self.precision = lambda name: self.card.autocast(None if name == "no" else DTYPES[name])
        scaler = partial(Scaler, self.trace, self.device, training.mixed_precision == "fp16")
        self.scaler = scaler()
        if standing.adversary:
            standing.adversary.scaler = scaler()
        standing.model.train(bool(standing.trained))  # what validates without an EMA leaves it otherwise
        for p in standing.trained:
            p.grad = None  # an optimizer that has a share of them clears its own only
        set_checkpointing(standing.model, training.gradient_checkpointing)

    def __enter__(self) -> "Run":
        self.trace.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.trace.__exit__(*error)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with self.trace.during("forward"):
            with self.precision(self.training.mixed_precision):
                yield
            self.trace.end_forward()
        self.trace.phase = "backward"

    def step(self, losses: Callable[[slice], dict[str, Tensor]], window: Hashable = None) -> None:
        """engine/step.py's optimizer_step, and the average. Of runs with an equal `window` (not None) one is traced."""
        standing, trained, optimizer = self.standing, self.standing.trained, self.standing.optimizer

        def learn() -> dict[str | int, Tensor]:
            means = accumulate_gradients(
                losses, self.window, self.training.batch_size, optimizer, self.scaler, self.autocast
            )
            return {**means, **{i: p.grad for i, p in enumerate(trained)}}

        with self.trace.during("inputs"):  # from its first step on a run has the scaler's numbers
            self.scaler.scale(torch.zeros((), device=self.device))
        with self.trace.during("forward"):
            left = self.trace.again({} if window is None else standing.windows, window, learn)
            for i, p in enumerate(trained):
                p.grad = left.pop(i)
            update_weights(left, self.window, trained, optimizer, self.scaler, self.training.optimizer.max_grad_norm)
        self.trace.label_gradients(trained)
        if standing.ema:
            with self.trace.during("EMA"):
                standing.ema.update(standing.model)


# ---- the optimizer


class Scaler(torch.amp.GradScaler):
    """train/engine/device.py's loss scaler. Unscaling is where the optimizer's part of a step begins."""

    def __init__(self, trace: Trace | Unrecorded, device: torch.device, enabled: bool):
        # Its few numbers stand beside the loss, wherever that is; "cuda" would refuse without a card. A scale of 1
        # overflows nowhere, so that no step is left out.
        super().__init__("cuda" if device.type == "cuda" else "cpu", init_scale=1.0, enabled=enabled)
        self.trace = trace

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.trace.phase = "optimizer"
        super().unscale_(optimizer)


def _share(parameters: list[nn.Parameter], ranks: int) -> list[nn.Parameter]:
    """What the first of `ranks` cards updates, when each parameter is given to the card that has least."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for p in sorted(parameters, key=lambda p: -p.numel()):
        rank = loads.index(min(loads))
        shares[rank].append(p)
        loads[rank] += p.numel()
    return shares[0]


def _adamw(parameters: list[nn.Parameter], config: OptimConfig, setting: Setting) -> torch.optim.Optimizer:
    """train/engine/optim.py's optimizer, in the form that torch takes by itself on a card only."""
    if config.fused and setting.device == "meta":
        return FusedAdamW(parameters)
    optimizer = make_adamw(parameters, config)
    optimizer.param_groups[0]["foreach"] = not config.fused
    return optimizer


class FusedAdamW(torch.optim.Optimizer):
    """The memory of torch.optim.AdamW(fused=True), which refuses the meta device: state, and no temporaries."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, {})

    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None and p not in self.state:
                step = torch.empty((), device=p.device)
                self.state[p] = {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}


def _begin(optimizer: torch.optim.Optimizer, trace: Trace | Unrecorded, device: str) -> None:
    """Bring its state into being, as the first step of a run does."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.zeros_like(p)
        trace.label([p.grad], "gradients", like=p)
    with trace.during("optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for p in parameters:
        state = [t for t in optimizer.state[p].values() if t.device.type == device]
        trace.label(state, "optimizer state", like=p)
