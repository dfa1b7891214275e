"""A batch of samples gives one step, however it is cut; an overflow changes nothing but the loss scale."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from tests.engine.problem import CPU, Problem, Taken, adamw_learner, latent_stage, learner_of, scaler, take_step
from tests.float64 import float64
from tests.tiny import tiny
from train.base.errors import UserError
from train.base.randomness import batch_rows, generator
from train.config.sections import OptimConfig
from train.engine.ema import EMA
from train.engine.optim import learning_rate
from train.engine.precision import GradScaler, autocast_to
from train.engine.step import Learner, NotFinite, make_learner

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0, lr_schedule="constant")


def step(problem: Problem, learner: Learner, micro_batch: int = 4, losses=None) -> Taken:
    return take_step(learner, losses or problem.losses, problem.batch, micro_batch)


def state_of(optimizer) -> list[torch.Tensor]:
    return [t.clone() for state in optimizer.state.values() for t in state.values()]


# ---- accumulation


@pytest.mark.parametrize("scale", [False, True], ids=["fp32", "scaled"])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (8, 4), (8, 1), (8, 3), (7, 4), (7, 5), (1, 1), (3, 9)])
def test_micro_batches_have_gradient_and_losses_of_the_batch(batch, micro_batch, scale):
    problem = Problem(batch)
    with torch.no_grad():
        full = problem.losses(slice(None))
    expected = problem.true_gradient()
    result = step(problem, adamw_learner(problem, OPTIM, scaler(scale)), micro_batch)
    # No more than 100 roundings of 2^-24 lie one behind another, forward and back, and they add up to 6e-6.
    assert (problem.gradient() - expected).norm() <= 1e-5 * expected.norm()
    assert result.grad_norm == pytest.approx(float(expected.norm()), rel=1e-5)
    assert result.losses == {name: pytest.approx(float(loss.mean()), rel=1e-5) for name, loss in full.items()}
    assert result.taken


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5])
@float64()
def test_micro_batches_are_clipped_and_stepped_as_the_full_batch(micro_batch):
    whole, cut = Problem(7), Problem(7)
    limit = 0.3 * float(whole.true_gradient().norm())
    for problem, size in ((whole, 7), (cut, micro_batch)):
        learner = learner_of(problem, torch.optim.SGD(problem.parameters(), lr=0.1), scaler(False), limit)
        result = step(problem, learner, size)
        assert result.grad_norm > 3 * limit  # of the gradient before it is clipped
        # clip_grad_norm_ adds 1e-6 to the norm.
        assert float(problem.gradient().norm()) == pytest.approx(limit, rel=1e-4)
    torch.testing.assert_close(cut.weights(), whole.weights(), rtol=1e-12, atol=1e-12)


def test_a_batch_leaves_nothing_behind_for_the_next():
    once, twice = Problem(6), Problem(6)
    for problem, times in ((once, 1), (twice, 2)):
        learner = learner_of(problem, torch.optim.SGD(problem.parameters(), lr=0.0), scaler(False))
        for _ in range(times):
            step(problem, learner)
    assert torch.equal(once.gradient(), twice.gradient())


def test_accumulating_again_gives_the_very_same_gradient():
    """As after memory ran out: what an attempt has left is replaced, and no weight has moved."""
    problem = Problem(7)
    learner, weights = adamw_learner(problem, OPTIM, scaler()), problem.weights()
    totals = learner.accumulate(problem.losses, 7, 3)
    gradient = problem.gradient()
    learner.accumulate(problem.losses, 7, 5)
    again = learner.accumulate(problem.losses, 7, 3)
    assert torch.equal(problem.gradient(), gradient)
    assert all(torch.equal(again[name], total) for name, total in totals.items())
    assert torch.equal(problem.weights(), weights)


@float64()
def train_ldm(micro_batch: int, steps: int = 50) -> dict[str, torch.Tensor]:
    """The weights of a small LDM after this many batches of 8 of 20 samples, so that every third is short."""
    config = tiny("ldm_loss.condition_dropout=0.3", "user_encoder.dropout=0.2", "user_encoder.tokens_per_user=2")
    stage = latent_stage(config, torch.randn(20, 4, 8, 8, generator=generator(0, "draws", 10**6)))
    for number in range(steps):
        rows = batch_rows(config.seed, number, 20, 8)
        batch = stage.draw(number, rows)
        stage.learner.set_learning_rate(learning_rate(config.ldm_training.optimizer, number, steps))
        take_step(stage.learner, partial(stage.losses, batch), len(rows), micro_batch)
    return stage.model.state_dict()


@pytest.fixture(scope="module")
def one_by_eight():
    return train_ldm(8)


@pytest.mark.parametrize("micro_batch", [4, 1, 3], ids=["2 x 4", "8 x 1", "3 + 3 + 2"])
def test_fifty_steps_end_in_the_same_weights_for_any_micro_batch(one_by_eight, micro_batch):
    cut = train_ldm(micro_batch)
    start = train_ldm(8, steps=0)
    names = [name for name in cut if not torch.equal(cut[name], start[name])]
    assert len(names) == len(cut)
    distance = sum((cut[n] - one_by_eight[n]).square().sum() for n in names).sqrt()
    assert distance <= 1e-9 * sum(one_by_eight[n].square().sum() for n in names).sqrt()


# ---- half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_all_that_is_kept_between_steps_is_fp32_under_autocast(precision):
    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler(precision == "fp16"), precision=precision)
    ema, seen = EMA(problem.model, 0.9), set()
    problem.model[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    for _ in range(3):
        assert step(problem, learner).taken
        ema.update(problem.model)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    kept = [*problem.parameters(), *(p.grad for p in problem.parameters()), *ema.model.parameters()]
    assert {t.dtype for t in [*kept, *state_of(learner.optimizer)]} == {torch.float32}


def test_the_loss_scale_holds_in_a_batch_and_grows_once_after_it():
    problem = Problem(8)  # a power of two, so that a share of the scale is exact
    learner, scales = adamw_learner(problem, OPTIM, scaler(init_scale=8.0, growth_interval=1)), []

    def losses(rows):
        parts = problem.losses(rows)
        parts["loss"].register_hook(lambda gradient: scales.append(gradient.unique().item() * problem.batch))
        return parts

    for _ in range(3):
        step(problem, learner, micro_batch=2, losses=losses)
    assert scales == [8.0] * 4 + [16.0] * 4 + [32.0] * 4


def test_a_scaled_step_is_the_unscaled_one():
    plain, scaled = Problem(6), Problem(6)
    for problem, enabled in ((plain, False), (scaled, True)):
        learner = adamw_learner(problem, OPTIM, scaler(enabled), max_grad_norm=0.01)
        for _ in range(5):
            step(problem, learner)
    assert torch.equal(plain.weights(), scaled.weights())  # a power of two scales exactly


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("bad", [0, 1, 2], ids=["first", "middle", "last"])
def test_an_overflow_in_any_micro_batch_only_changes_the_scale(bad, value, fused):
    problem = Problem(6)
    optimizer = torch.optim.AdamW(problem.parameters(), lr=0.1, fused=fused)
    one = scaler(init_scale=1024.0)
    learner = learner_of(problem, optimizer, one)
    assert step(problem, learner, micro_batch=2).taken
    weights, state = problem.weights(), state_of(optimizer)

    def losses(rows):
        parts = problem.losses(rows)
        if rows.start == 2 * bad:
            parts["loss"] = parts["loss"] * value
        return parts

    assert not step(problem, learner, micro_batch=2, losses=losses).taken
    assert torch.equal(problem.weights(), weights)
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state, strict=True))
    assert one.get_scale() == 512.0
    assert step(problem, learner, micro_batch=2).taken
    assert not torch.equal(problem.weights(), weights)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_unscaled_gradient_not_finite_stops_before_any_change(value, precision):
    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler(False), precision=precision)
    step(problem, learner)
    weights, state = problem.weights(), state_of(learner.optimizer)

    def losses(rows):
        return {"loss": problem.losses(rows)["loss"] * value}

    with pytest.raises(NotFinite, match=r"loss (inf|nan) and gradient norm nan are not both finite"):
        step(problem, learner, losses=losses)
    assert torch.equal(problem.weights(), weights)
    assert all(torch.equal(a, b) for a, b in zip(state_of(learner.optimizer), state, strict=True))


def test_a_loss_not_finite_with_a_finite_gradient_stops_too():
    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * float("nan")

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    problem = Problem(6)
    learner, weights = adamw_learner(problem, OPTIM, scaler(False)), problem.weights()
    with pytest.raises(NotFinite, match="loss nan and gradient norm"):
        step(problem, learner, losses=lambda rows: {"loss": Lost.apply(problem.losses(rows)["loss"])})
    assert torch.equal(problem.weights(), weights)


def test_out_of_memory_in_the_optimizer_is_not_tried_again(monkeypatch):
    """Weights may be half changed by then: to try again would be wrong."""
    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler(False))

    def full(*args):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(learner.optimizer, "step", full)
    with pytest.raises(UserError, match=r"no memory for the optimizer's state or temporaries \(no memory\)"):
        step(problem, learner)


@pytest.mark.parametrize("overflows", [False, True])
def test_memory_for_the_new_loss_scale_is_asked_for_once_more(monkeypatch, overflows):
    """By then the weights have changed: the step is not taken twice."""
    def losses(rows):
        return {"loss": problem.losses(rows)["loss"] * (float("inf") if overflows else 1.0)}

    whole, found = torch._amp_update_scale_, []
    for failures in (0, 1):
        problem, left = Problem(6), iter([True] * failures)

        def full(*args, left=left):
            if next(left, False):
                raise torch.OutOfMemoryError("injected")
            return whole(*args)

        monkeypatch.setattr(torch, "_amp_update_scale_", full)
        learner = adamw_learner(problem, OPTIM, scaler(init_scale=8.0, growth_interval=1))
        taken = step(problem, learner, losses=losses).taken
        found.append((taken, problem.weights().tolist(), learner.scaler.get_scale()))
    assert found[0] == found[1]
    assert found[0][2] == (4.0 if overflows else 16.0)


def test_a_loss_scale_that_never_finds_memory_ends_in_a_sentence(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("injected")

    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler())
    monkeypatch.setattr(torch, "_amp_update_scale_", full)
    with pytest.raises(UserError, match="injected"):
        step(problem, learner)


class Alone:
    """In place of DDP, in a single process: all that a learner asks of it, but for the buckets."""

    def __call__(self, losses, rows):
        return losses(rows)

    def no_sync(self):
        return nullcontext()


@pytest.mark.parametrize(("failing", "error"), [(0, torch.OutOfMemoryError), (4, UserError)], ids=["first", "last"])
def test_out_of_memory_while_processes_communicate_is_final(failing, error):
    """In the backward pass of the last micro-batch, in which they communicate; before it can be."""
    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler(False))
    learner.ddp = Alone()

    def losses(rows):
        parts = problem.losses(rows)
        if rows.start == failing:
            parts["loss"].register_hook(full)
        return parts

    def full(gradient):
        raise torch.OutOfMemoryError("injected")

    with pytest.raises(error, match="injected" if error is not UserError else r"processes added up .*\(injected\)"):
        learner.accumulate(losses, 6, 4)


def test_out_of_memory_in_clipping_is_final_where_others_have_gone_on(monkeypatch):
    problem = Problem(6)
    learner = adamw_learner(problem, OPTIM, scaler())
    learner.ddp = Alone()
    learner.accumulate(problem.losses, 6, 4)

    def full(*args):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", full)
    with pytest.raises(UserError, match="while the processes added up"):
        learner.clip()


# ---- a learner


def test_a_learner_sets_the_learning_rate_of_every_group():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    Learner(parameters, optimizer, scaler(False), autocast_to(CPU, "no"), 1.0).set_learning_rate(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("precision", "dtype", "scaled"),
    [("no", torch.float32, False), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, True)],
)
def test_a_learner_is_made_of_its_config_and_precision(precision, dtype, scaled):
    problem, config = Problem(6), OptimConfig(learning_rate=0.5, betas=(0.8, 0.9), weight_decay=0.03, max_grad_norm=7.0)
    learner = make_learner(problem.parameters(), config, False, CPU, precision)
    (group,) = learner.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.8, 0.9), 0.03)
    assert learner.max_grad_norm == 7.0
    assert learner.ddp is None  # of a single process
    assert [id(p) for p in learner.parameters] == [id(p) for p in group["params"]]
    assert isinstance(learner.scaler, GradScaler)
    assert learner.scaler.is_enabled() == scaled
    with learner.autocast():
        assert problem.model[0](problem.x).dtype == dtype
