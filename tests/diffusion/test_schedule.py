"""The table of noise levels, the timesteps, the conversions and the training loss, against algebra."""

import math
from itertools import pairwise

import pytest
import torch

from diffusion.loss import LossConfig, diffusion_loss, draw, drop_condition, loss_weight
from diffusion.prediction import target, to_x0_and_noise
from diffusion.schedule import CLEAN, ScheduleConfig, make_schedule, timesteps
from tests.float64 import float64

KINDS = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("noise", "x0", "velocity")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_schedule_preserves_variance_and_loses_signal_every_step(kind, zero_terminal_snr):
    config = ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr, prediction="velocity")
    schedule = make_schedule(config)
    one = torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, one, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.cumprod(1 - schedule.betas, 0), schedule.alphas_cumprod)
    assert (schedule.alpha.diff() < 0).all()
    assert schedule.betas.dtype == schedule.log_snr.dtype == torch.float64
    levels = [schedule.level(t) for t in (0, 500, 998)]
    assert [level.log_snr for level in levels] == pytest.approx(
        [float(schedule.log_snr[lv.t]) for lv in levels]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_ends_in_noise_and_keeps_level_zero(kind):
    plain = make_schedule(ScheduleConfig(kind))
    zero = make_schedule(ScheduleConfig(kind, zero_terminal_snr=True, prediction="velocity"))
    assert zero.level(999) == (999, 0.0, 1.0)
    assert zero.level(999).noise_ratio == math.inf
    assert zero.level(999).log_snr == zero.log_snr[999] == -math.inf
    assert zero.level(0).alpha == pytest.approx(plain.level(0).alpha, abs=1e-15)
    x0, noise = torch.ones(1, 2), torch.full((1, 2), 3.0)
    assert torch.equal(zero.add_noise(x0, noise, torch.tensor([999])), noise)


def test_clean_level_has_no_noise():
    assert (CLEAN.noise_ratio, CLEAN.log_snr) == (0.0, math.inf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_noised_in_float32(dtype):
    schedule = make_schedule(ScheduleConfig("linear", beta_start=1e-6, beta_end=0.02))
    x0, noise = torch.full((2, 4), 0.5, dtype=dtype), torch.ones(2, 4, dtype=dtype)
    x_t = schedule.add_noise(x0, noise, torch.tensor([0, 999]))
    assert x_t.dtype == torch.float32
    assert float(x_t[0, 0]) == pytest.approx(0.5 * math.sqrt(1 - 1e-6) + 1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
    ],
)
def test_timesteps_are_those_of_the_paper(spacing, expected):
    assert timesteps(1000, 10, spacing) == expected  # Lin et al. 2023, table 2, counted from 0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_as_many_as_asked_decreasing_and_in_range(spacing):
    for steps in range(2, 1001):
        ts = timesteps(1000, steps, spacing)
        assert len(ts) == steps
        assert ts[0] <= 999
        assert ts[-1] >= 0
        assert all(a > b for a, b in pairwise(ts))


@pytest.mark.parametrize(
    ("steps", "spacing"), [(0, "trailing"), (1001, "trailing"), (1, "leading"), (1, "linspace"), (5, "even")]
)
def test_impossible_timesteps_are_refused(steps, spacing):
    with pytest.raises(ValueError, match=r"^(steps|one step|spacing) "):
        timesteps(1000, steps, spacing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_terminal_snr": True, "prediction": "noise"}, "0/0"),
        ({"kind": "sigmoid"}, "kind"),
        ({"prediction": "score"}, "prediction"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 1, "zero_terminal_snr": True, "prediction": "x0"}, "num_train_timesteps"),
        ({"beta_start": 0.0}, "beta"),
        ({"beta_start": 0.1, "beta_end": 0.01}, "beta"),
        ({"beta_end": 1.0}, "beta"),
        ({"beta_end": math.nan}, "beta"),
    ],
)
def test_nonsense_schedule_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**options)


@pytest.mark.parametrize(
    "options",
    [{"weighting": "p2"}, {"min_snr_gamma": 0.0}, {"condition_dropout": 1.1}, {"condition_dropout": -0.1}],
)
def test_nonsense_loss_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LossConfig(**options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversion_of_the_target_gives_back_x0_and_noise(prediction):
    x0, noise = torch.randn(2, 5, 3, generator=seeded(0), dtype=torch.float64)
    angle = torch.linspace(0.1, 1.4, 5, dtype=torch.float64).view(5, 1)
    alpha, sigma = angle.cos(), angle.sin()
    output = target(prediction, x0, noise, alpha, sigma)
    estimates = to_x0_and_noise(prediction, output, alpha * x0 + sigma * noise, alpha, sigma)
    torch.testing.assert_close(estimates, (x0, noise))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_estimates_of_any_output_add_up_to_x_t(prediction):
    x, output = torch.randn(2, 5, 3, generator=seeded(0), dtype=torch.float64)
    x0, noise = to_x0_and_noise(prediction, output, x, 0.6, 0.8)
    torch.testing.assert_close(0.6 * x0 + 0.8 * noise, x)


def test_velocity_is_the_derivative_of_x_t_by_the_angle():
    x0, noise = torch.randn(2, 5, generator=seeded(0), dtype=torch.float64)
    x_t = lambda angle: math.cos(angle) * x0 + math.sin(angle) * noise  # noqa: E731
    derivative = (x_t(0.7 + 1e-5) - x_t(0.7 - 1e-5)) / 2e-5
    velocity = target("velocity", x0, noise, math.cos(0.7), math.sin(0.7))
    torch.testing.assert_close(velocity, derivative, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@float64()
def test_min_snr_weights_the_x0_error_alike_for_all_predictions(prediction):
    gamma = 5.0
    schedule = make_schedule(ScheduleConfig(prediction=prediction))
    x0, noise, output = torch.randn(3, 1000, 1, 2, 2, generator=seeded(0))
    t = torch.arange(1000)
    config = LossConfig("min_snr", gamma)
    loss = diffusion_loss(lambda x_t, t, condition: output, schedule, config, x0, None, t, noise)
    alpha, sigma = (table.view(-1, 1, 1, 1) for table in (schedule.alpha, schedule.sigma))
    x_t = alpha * x0 + sigma * noise
    x0_estimate, _ = to_x0_and_noise(prediction, output.double(), x_t, alpha, sigma)
    snr = (schedule.alpha / schedule.sigma) ** 2
    expected = snr.clamp(max=gamma) * (x0_estimate - x0).square().mean((1, 2, 3))
    assert (snr > gamma).any()
    assert (snr < gamma).any()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["x0", "velocity"])
def test_min_snr_weights_are_finite_and_zero_only_at_zero_snr(prediction):
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction=prediction))
    weight = loss_weight(schedule, torch.arange(1000), "min_snr", 5.0)
    assert weight.isfinite().all()
    assert (weight[:-1] > 0).all()
    assert weight[-1] == 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_squared_error_of_each_sample(prediction):
    schedule = make_schedule(ScheduleConfig(prediction=prediction))
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=seeded(0))
    t = torch.tensor([0, 400, 999])
    alpha, sigma = (table[t].float().view(3, 1, 1, 1) for table in (schedule.alpha, schedule.sigma))

    def network(x_t, t, condition):
        torch.testing.assert_close(x_t, alpha * x0 + sigma * noise)
        return (target(prediction, x0, noise, alpha, sigma) + condition).bfloat16()

    off_by = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    loss = diffusion_loss(network, schedule, LossConfig(), x0, off_by, t, noise)
    assert loss.dtype == torch.float32
    # bfloat16 rounds by 2^-9 of a value: 0.5% of a loss even if all go one way, and the square, 4e-6, of no loss.
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]), rtol=0.01, atol=1e-4)


@float64()
def test_micro_batches_of_draws_have_losses_of_the_full_batch():
    schedule = make_schedule(ScheduleConfig())
    shape = (7, 4, 8, 8)
    x0 = torch.randn(shape, generator=seeded(1))
    condition = torch.randn(7, 1, 1, 1, generator=seeded(2))
    draws = draw(shape, 1000, 0.5, seeded(3))

    def losses(rows):
        part = draws[rows]
        kept = torch.where(part.dropped.view(-1, 1, 1, 1), 0.0, condition[rows])
        network = lambda x, t, c: x.tanh() * (1 + t.view(-1, 1, 1, 1) / 1000) + c  # noqa: E731
        return diffusion_loss(network, schedule, LossConfig("min_snr"), x0[rows], kept, part.t, part.noise)

    full = losses(slice(0, 7))
    parts = torch.cat([losses(rows) for rows in (slice(0, 3), slice(3, 6), slice(6, 7))])
    torch.testing.assert_close(parts, full, rtol=1e-12, atol=0)
    assert len(full.unique()) == 7


def test_equal_seeds_draw_the_same_without_the_global_rng():
    state = torch.get_rng_state()
    first, second, other = (draw((64, 2), 1000, 0.5, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    for name in ("t", "noise", "dropped"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_draws_are_uniform_over_all_timesteps():
    t = draw((20_000, 1), 10, 0.0, seeded(0)).t
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert ((counts - 2000).abs() < 5 * math.sqrt(2000)).all()


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0.0, 0.0, 0.0), (0.1, 0.09, 0.11), (1.0, 1.0, 1.0)]
)
def test_conditions_drop_with_their_probability(probability, low, high):
    dropped = drop_condition(20_000, probability, seeded(0))
    assert dropped.dtype == torch.bool
    assert low <= dropped.float().mean() <= high


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize(
    ("T", "start", "end"),
    [(1000, 1e-300, 1e-300), (1000, 1e-12, 0.02), (1, 1e-17, 0.5), (1000, 0.5, 0.999), (10**6, 1e-4, 0.02)],
)
def test_a_schedule_without_noise_or_signal_is_refused(kind, T, start, end):
    with pytest.raises(ValueError, match="it must start below 1 and end above 0 by more than rounding"):
        ScheduleConfig(kind, T, start, end)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize(
    ("T", "start", "end"), [(1, 1e-8, 1e-8), (1000, 1e-8, 1e-8), (1000, 1e-4, 0.2), (40, 0.5, 0.999)]
)
def test_what_a_schedule_may_be_has_finite_tables(kind, T, start, end):
    schedule = make_schedule(ScheduleConfig(kind, T, start, end))
    for table in (schedule.alpha, schedule.sigma):
        assert (1 / table.float()).isfinite().all()
    assert schedule.log_snr.isfinite().all()
