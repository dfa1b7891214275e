"""A window of samples gives one step, however it is cut; an overflow changes nothing but the loss scale."""

import contextlib
import copy
from functools import partial

import pytest
import torch
from torch import nn

from diffusion.schedule import make_schedule
from tests.tiny import tiny, tiny_denoiser
from train.base.errors import UserError
from train.base.randomness import generator, window_rows
from train.engine.device import autocast
from train.engine.ema import EMA
from train.engine.optim import OptimConfig, learning_rate, make_adamw, set_learning_rate
from train.engine.step import NotFinite, optimizer_step
from train.stages.denoising import denoising_loss, draw_training_window

CPU = torch.device("cpu")
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0, lr_schedule="constant")
NO_LIMIT = 1e9


class Problem:
    """A network, `window` samples, and their losses."""

    def __init__(self, window: int, seed: int = 0):
        torch.manual_seed(seed)
        self.window = window
        self.model = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 3))
        self.x, self.y = torch.randn(window, 5), torch.randn(window, 3)

    def losses(self, rows: slice) -> dict[str, torch.Tensor]:
        error = self.model(self.x[rows]) - self.y[rows]
        squared = error.float().square().mean(1)
        return {"loss": squared, "absolute": error.float().abs().mean(1)}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def gradient(self) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters()])

    def true_gradient(self) -> torch.Tensor:
        """Of the mean loss of all the samples, in float64."""
        model = copy.deepcopy(self.model).double()
        (model(self.x.double()) - self.y.double()).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])


def scaler(enabled: bool = True, **options) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=enabled, **options)


def step(problem, optimizer, scaler, micro_batch=4, max_grad_norm=NO_LIMIT, losses=None, precision="no"):
    return optimizer_step(
        losses or problem.losses, problem.window, micro_batch, problem.parameters(), optimizer, scaler,
        partial(autocast, CPU, precision), max_grad_norm,
    )  # fmt: skip


def state_of(optimizer) -> list[torch.Tensor]:
    return [t.clone() for state in optimizer.state.values() for t in state.values()]


# ---- accumulation


@pytest.mark.parametrize("scale", [False, True], ids=["fp32", "scaled"])
@pytest.mark.parametrize(
    ("window", "micro_batch"), [(8, 8), (8, 4), (8, 1), (8, 3), (7, 4), (7, 5), (1, 1), (3, 9)]
)
def test_any_cut_of_a_window_gives_the_full_batchs_gradient_norm_and_losses(window, micro_batch, scale):
    problem = Problem(window)
    with torch.no_grad():
        full = problem.losses(slice(None))
    expected = problem.true_gradient()
    result = step(problem, make_adamw(problem.parameters(), OPTIM), scaler(scale), micro_batch)
    assert (problem.gradient() - expected).norm() <= 1e-6 * expected.norm()
    assert result.grad_norm == pytest.approx(float(expected.norm()), rel=1e-6)
    assert result.losses == {name: pytest.approx(float(loss.mean()), rel=1e-6) for name, loss in full.items()}
    assert result.taken


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5])
def test_any_cut_of_a_window_is_clipped_and_stepped_alike(micro_batch):
    whole, cut = Problem(7), Problem(7)
    limit = 0.3 * float(whole.true_gradient().norm())
    for problem, size in ((whole, 7), (cut, micro_batch)):
        optimizer = torch.optim.SGD(problem.parameters(), lr=0.1)
        result = step(problem, optimizer, scaler(False), size, max_grad_norm=limit)
        assert result.grad_norm > 3 * limit  # of the gradient before it is clipped
        assert float(problem.gradient().norm()) == pytest.approx(limit, rel=1e-4)
    torch.testing.assert_close(cut.weights(), whole.weights(), rtol=1e-6, atol=1e-7)


def test_a_window_leaves_nothing_behind_for_the_next():
    once, twice = Problem(6), Problem(6)
    step(once, torch.optim.SGD(once.parameters(), lr=0.0), scaler(False))
    optimizer = torch.optim.SGD(twice.parameters(), lr=0.0)
    step(twice, optimizer, scaler(False))
    step(twice, optimizer, scaler(False))
    assert torch.equal(once.gradient(), twice.gradient())


def train_ldm(micro_batch: int, steps: int = 50) -> dict[str, torch.Tensor]:
    """The weights of a small LDM after this many windows of 8 of 20 samples, so that every third is short."""
    samples, window = 20, 8
    config = tiny(
        "ldm_loss.condition_dropout=0.3", "user_encoder.dropout=0.2", "user_encoder.tokens_per_user=2"
    )
    model = tiny_denoiser(config).train()
    chance = generator(0, "draws", 10**6)
    latents = torch.randn(samples, 4, 8, 8, generator=chance)
    users = torch.arange(samples) % 3
    schedule = make_schedule(config.schedule)
    parameters = model.trained_parameters()
    optimizer = make_adamw(parameters, OPTIM)
    for number in range(steps):
        rows = window_rows(config.seed, number, samples, window)
        draws = draw_training_window(
            latents[rows].shape, config.schedule.num_train_timesteps, config.ldm_loss.condition_dropout,
            model.user_encoder, generator(config.seed, "draws", number), CPU,
        )  # fmt: skip

        def losses(part, rows=rows, draws=draws):
            x0, who = latents[rows[part]], users[rows[part]]
            return {"loss": denoising_loss(model, schedule, config.ldm_loss, x0, who, draws[part])}

        set_learning_rate(optimizer, learning_rate(config.ldm_training.optimizer, number, steps))
        optimizer_step(
            losses, len(rows), micro_batch, parameters, optimizer, scaler(False), contextlib.nullcontext, 1.0
        )
    return model.state_dict()


@pytest.fixture(scope="module")
def one_by_eight():
    return train_ldm(8)


@pytest.mark.parametrize("micro_batch", [4, 1, 3], ids=["2 x 4", "8 x 1", "3 + 3 + 2"])
def test_one_by_eight_and_any_other_cut_end_in_the_same_weights_after_fifty_steps(one_by_eight, micro_batch):
    cut = train_ldm(micro_batch)
    start = train_ldm(8, steps=0)
    names = [name for name in cut if not torch.equal(cut[name], start[name])]
    assert len(names) == len(cut)
    distance = sum((cut[n] - one_by_eight[n]).square().sum() for n in names).sqrt()
    assert distance <= 1e-5 * sum(one_by_eight[n].square().sum() for n in names).sqrt()


# ---- half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_average_gradients_and_optimizer_state_stay_fp32_under_autocast(precision):
    problem = Problem(6)
    optimizer, ema = make_adamw(problem.parameters(), OPTIM), EMA(problem.model, 0.9)
    seen = set()
    problem.model[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    for _ in range(3):
        assert step(problem, optimizer, scaler(precision == "fp16"), precision=precision).taken
        ema.update(problem.model)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    kept = [*problem.parameters(), *(p.grad for p in problem.parameters()), *ema.model.parameters()]
    assert {t.dtype for t in [*kept, *state_of(optimizer)]} == {torch.float32}


def test_one_loss_scale_holds_within_a_window_and_grows_once_after_it():
    problem = Problem(8)  # a power of two, so that a share of the scale is exact
    optimizer, grown = make_adamw(problem.parameters(), OPTIM), scaler(init_scale=8.0, growth_interval=1)
    scales = []

    def losses(rows):
        parts = problem.losses(rows)
        parts["loss"].register_hook(lambda gradient: scales.append(gradient.unique().item() * problem.window))
        return parts

    for _ in range(3):
        step(problem, optimizer, grown, micro_batch=2, losses=losses)
    assert scales == [8.0] * 4 + [16.0] * 4 + [32.0] * 4


def test_a_scaled_step_is_the_unscaled_one():
    plain, scaled = Problem(6), Problem(6)
    for problem, enabled in ((plain, False), (scaled, True)):
        optimizer, one = make_adamw(problem.parameters(), OPTIM), scaler(enabled)
        for _ in range(5):
            step(problem, optimizer, one, max_grad_norm=0.01)
    assert torch.equal(plain.weights(), scaled.weights())  # a power of two scales exactly


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("bad", [0, 1, 2], ids=["first", "middle", "last"])
def test_an_overflow_in_any_micro_batch_changes_nothing_but_the_scale(bad, value, fused):
    problem = Problem(6)
    optimizer = torch.optim.AdamW(problem.parameters(), lr=0.1, fused=fused)
    one = scaler(init_scale=1024.0)
    assert step(problem, optimizer, one, micro_batch=2).taken
    weights, state = problem.weights(), state_of(optimizer)

    def losses(rows):
        parts = problem.losses(rows)
        if rows.start == 2 * bad:
            parts["loss"] = parts["loss"] * value
        return parts

    result = step(problem, optimizer, one, micro_batch=2, losses=losses)
    assert not result.taken
    assert torch.equal(problem.weights(), weights)
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state, strict=True))
    assert one.get_scale() == 512.0
    assert step(problem, optimizer, one, micro_batch=2).taken
    assert not torch.equal(problem.weights(), weights)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_without_a_scaler_stops_before_any_change(value, precision):
    problem = Problem(6)
    optimizer = make_adamw(problem.parameters(), OPTIM)
    step(problem, optimizer, scaler(False))
    weights, state = problem.weights(), state_of(optimizer)

    def losses(rows):
        return {"loss": problem.losses(rows)["loss"] * value}

    with pytest.raises(NotFinite, match=r"loss (inf|nan) and gradient norm nan are not both finite"):
        step(problem, optimizer, scaler(False), losses=losses, precision=precision)
    assert torch.equal(problem.weights(), weights)
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state, strict=True))


def test_memory_that_ends_in_the_optimizers_step_is_not_taken_for_too_large_a_micro_batch(monkeypatch):
    """Weights may be half changed by then: to try again would be wrong."""
    problem = Problem(6)
    optimizer = make_adamw(problem.parameters(), OPTIM)

    def full(*args):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(optimizer, "step", full)
    with pytest.raises(UserError, match=r"no memory for the optimizer's state .* whatever the batch_size"):
        step(problem, optimizer, scaler(False))
