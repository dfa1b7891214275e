"""Samplers against algebra and against Gaussian data, whose denoiser and flow are known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from diffusion.guidance import guided, mixed
from diffusion.prediction import Evaluation, target, to_x0_and_noise
from diffusion.samplers import ddim, dpm_solver, euler
from diffusion.sampling import SAMPLERS, Sampler, SamplingConfig, integrate, sample
from diffusion.schedule import CLEAN, Level, ScheduleConfig, make_schedule
from tests.float64 import float64

MEAN, STD = 0.8, 0.5  # of the Gaussian data
NAMES = list(SAMPLERS)


def gaussian_estimate(x, level, mean=MEAN):
    """E[x0 | x] and E[noise | x] for x0 ~ N(mean, STD^2)."""
    _, alpha, sigma = level
    centred = (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
    return Evaluation(level, mean + alpha * STD**2 * centred, sigma * centred)


def gaussian_network(schedule, mean=MEAN):
    """The perfect network for that data, with the schedule's kind of output."""

    def denoiser(x, level):
        level = schedule.level(level.t)  # a network knows the timestep only
        _, x0, noise = gaussian_estimate(x, level, mean)
        return target(schedule.config.prediction, x0, noise, level.alpha, level.sigma)

    return denoiser


def gaussian_flow(z, level):
    """Where the probability-flow ODE has the point that is z standard deviations off the mean."""
    return level.alpha * MEAN + math.hypot(level.alpha * STD, level.sigma) * z


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def no_noise():
    raise AssertionError("a deterministic sampler drew noise")


def level_of(ratio):
    alpha = 1 / math.hypot(1, ratio)
    return Level(0, alpha, ratio * alpha)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_ddim_recovers_x0_given_true_noise_in_one_step(t):
    schedule = make_schedule(ScheduleConfig())
    x0, noise = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    level = schedule.level(t)
    x = schedule.add_noise(x0, noise, torch.full((2,), t))
    estimate = Evaluation(level, (x - level.sigma * noise) / level.alpha, noise)
    torch.testing.assert_close(ddim(x, estimate, CLEAN, None, None), x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_returns_x0_if_the_network_always_knows_it(name):
    x0 = normal(2, 3, 4, 4)
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction="x0"))
    config = SamplingConfig(name, steps=7)
    out = sample(
        lambda x, level: x0, normal(2, 3, 4, 4, seed=1), schedule, config, lambda: normal(2, 3, 4, 4)
    )
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-12)


def random_steps():
    schedule = make_schedule(ScheduleConfig(kind="cosine"))
    for t, s in [(999, 700), (700, 650), (400, 3), (3, 0), (500, -1)]:
        level = schedule.level(t)
        x, x0 = normal(5, seed=t), normal(5, seed=t + 1)
        to = schedule.level(s) if s >= 0 else CLEAN
        yield x, Evaluation(level, x0, (x - level.alpha * x0) / level.sigma), to


def test_dpm_solver_of_order_one_equals_ddim():
    for x, now, to in random_steps():
        expected = ddim(x, now, to, None, None)
        torch.testing.assert_close(dpm_solver(x, now, to, None, None), expected, rtol=0, atol=1e-11)


def test_dpm_solver_extrapolates_x0_linearly_in_log_snr():
    """If x0's estimate is linear in lambda, its second-order D is the estimate at the middle of the step."""
    previous, now, to = level_of(9.0), level_of(4.0), level_of(2.5)
    x, a, b = normal(5), normal(5, seed=1), normal(5, seed=2)
    x0_at = lambda log_snr: a + b * log_snr  # noqa: E731
    estimates = [Evaluation(level, x0_at(level.log_snr), None) for level in (previous, now)]
    middle = Evaluation(now, x0_at((now.log_snr + to.log_snr) / 2), None)
    expected = dpm_solver(x, middle, to, None, None)
    torch.testing.assert_close(dpm_solver(x, estimates[1], to, estimates[0], None), expected)


def test_euler_in_sigma_over_alpha_equals_ddim():
    for x, now, to in random_steps():
        derivative = now.noise
        by_definition = x / now.level.alpha + (to.noise_ratio - now.level.noise_ratio) * derivative
        step = euler(x, now, to, None, None)
        torch.testing.assert_close(step, to.alpha * by_definition, rtol=0, atol=1e-9)
        torch.testing.assert_close(step, ddim(x, now, to, None, None))


def test_ddim_with_eta_one_equals_ddpm():
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction="velocity"))
    x = normal(2, 3, 4, 4)
    outs = []
    for config in (SamplingConfig("ddpm", 10), SamplingConfig("ddim", 10, eta=1.0)):
        seeds = iter(range(100))
        draw_noise = lambda seeds=seeds: normal(2, 3, 4, 4, seed=next(seeds))  # noqa: E731
        outs.append(sample(gaussian_network(schedule), x, schedule, config, draw_noise))
    torch.testing.assert_close(*outs, rtol=0, atol=1e-10)


def sampled_mean_and_std(schedule, config):
    """Exact, without random numbers: the denoiser is affine, so a sample is a sum of independent normals.

    Coordinate 0 of x holds the sum's mean, and each other one the factor of one of the normals.
    """
    level, unit = schedule.level(999), torch.eye(config.steps + 2, dtype=torch.float64)
    draws = iter(unit[2:])
    x = level.alpha * MEAN * unit[0] + math.hypot(level.alpha * STD, level.sigma) * unit[1]
    out = sample(gaussian_network(schedule, MEAN * unit[0]), x, schedule, config, lambda: next(draws))
    return float(out[0]), float(out[1:].norm())


@pytest.mark.parametrize(("kind", "zero_terminal_snr"), [("scaled_linear", False), ("cosine", True)])
@pytest.mark.parametrize("prediction", ["x0", "velocity"])
@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in NAMES), ("ddim", 0.5)])
def test_every_sampler_converges_to_gaussian_mean_and_variance(
    name, eta, kind, zero_terminal_snr, prediction
):
    config = ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr, prediction=prediction)
    errors = []
    for steps in (50, 200, 1000):
        mean, std = sampled_mean_and_std(make_schedule(config), SamplingConfig(name, steps, eta=eta))
        errors.append(max(abs(mean - MEAN), abs(std / STD - 1)))
    for coarse, fine in pairwise(errors):
        assert fine < max(coarse / 2, 2e-4)  # 1e-4 stays where alpha = 2^-12 stands for 0
    assert errors[2] < 0.01


def flow_error(sampler: Sampler, n: int) -> float:
    """Largest distance from the exact flow after n steps from sigma/alpha = 20 to 0.05."""
    ratios = torch.logspace(math.log10(20), math.log10(0.05), n + 1, dtype=torch.float64).tolist()
    levels = [level_of(ratio) for ratio in ratios]
    z = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    out = integrate(gaussian_estimate, gaussian_flow(z, levels[0]), levels, sampler, no_noise)
    return float((out - gaussian_flow(z, levels[-1])).abs().max())


@pytest.mark.parametrize(("name", "order"), [("dpm", 2), ("heun", 2), ("euler", 1), ("ddim", 1)])
def test_doubling_steps_divides_the_error_by_two_to_the_order(name, order):
    sampler = SAMPLERS[name](SamplingConfig(name))
    errors = [flow_error(sampler, n) for n in (100, 200, 400)]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.15
    assert errors[-1] < 10.0 ** (-1 - order)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm", "heun"])
def test_sampling_from_zero_terminal_snr_follows_the_exact_flow(name):
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction="velocity"))
    z = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        out = sample(gaussian_network(schedule), z, schedule, SamplingConfig(name, steps), no_noise)
        errors.append(float((out - gaussian_flow(z, CLEAN)).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_heun_survives_a_terminal_snr_near_zero(zero_terminal_snr):
    """Its correction from sigma/alpha = 20,000 to 12 would multiply any change of the slope by 800."""
    config = ScheduleConfig("cosine", zero_terminal_snr=zero_terminal_snr, prediction="velocity")
    schedule = make_schedule(config)
    z = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    out = sample(gaussian_network(schedule), z, schedule, SamplingConfig("heun", 20), no_noise)
    torch.testing.assert_close(out, gaussian_flow(z, CLEAN), rtol=0, atol=0.03)


@float64()
def test_an_image_is_the_same_whatever_its_batch():
    schedule = make_schedule(ScheduleConfig())
    config = SamplingConfig("ddpm", steps=5)

    def generate(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draw_noise = lambda: torch.stack([torch.randn(3, 4, 4, generator=g) for g in generators])  # noqa: E731
        return sample(lambda x, level: x.tanh(), draw_noise(), schedule, config, draw_noise)

    together = generate([0, 1, 2])
    alone = torch.cat([generate([seed]) for seed in (0, 1, 2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm", "euler"])
def test_after_each_step_one_sees_what_the_network_sees_next(sampler):
    schedule, given, seen = make_schedule(ScheduleConfig()), [], []

    def denoiser(x, level):
        given.append(x)
        return x.tanh()

    def after_step(step, x, now):
        seen.append(x)
        assert step == len(seen) == len(given)
        torch.testing.assert_close(now.level.alpha * now.x0 + now.level.sigma * now.noise, given[-1])

    noise = torch.randn(2, 1, 4, 4)
    out = sample(denoiser, noise, schedule, SamplingConfig(sampler, 5), lambda: noise, after_step)
    assert all(x is y for x, y in zip(seen, [*given[1:], out], strict=True))


def test_a_half_precision_network_samples_in_unclipped_float32():
    schedule = make_schedule(ScheduleConfig(prediction="x0"))
    seen = []

    def denoiser(x, level):
        seen.append(x.dtype)
        return torch.full_like(x, 7.0).bfloat16()

    out = sample(denoiser, torch.randn(1, 4, 8, 8), schedule, SamplingConfig(steps=3), no_noise)
    assert seen == [torch.float32] * 3
    torch.testing.assert_close(out, torch.full((1, 4, 8, 8), 7.0))


@pytest.mark.parametrize(
    ("name", "calls"), [("ddpm", 6), ("ddim", 6), ("dpm", 6), ("euler", 6), ("heun", 11)]
)
def test_only_heun_calls_the_network_twice_but_for_its_last_step(name, calls):
    schedule = make_schedule(ScheduleConfig())
    seen = []
    denoiser = lambda x, level: seen.append(level.t) or torch.zeros_like(x)  # noqa: E731
    sample(denoiser, torch.zeros(1), schedule, SamplingConfig(name, 6), partial(torch.zeros, 1))
    assert len(seen) == calls


class CountingNetwork:
    """output = x + the condition's own value; notes the batch and the timestep of every call."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, condition):
        assert len(x) == len(t) == len(condition)
        self.calls.append((len(x), t.unique().tolist()))
        return x + condition[:, 0, 0].view(-1, 1, 1, 1)


def guide(scale, ratio, interval=None):
    network = CountingNetwork()
    conditional = torch.tensor([3.0, 5.0]).view(2, 1, 1)
    denoiser = guided(network, conditional, torch.ones(2, 1, 1), scale, interval)
    level = level_of(ratio)._replace(t=17)
    return denoiser(torch.zeros(2, 4, 8, 8), level)[:, 0, 0, 0].tolist(), network.calls


def test_guidance_extrapolates_with_both_halves_in_one_batch():
    assert guide(2.5, 1.0) == ([1 + 2.5 * (3 - 1), 1 + 2.5 * (5 - 1)], [(4, [17])])


def test_guidance_zero_is_unconditional():
    assert guide(0.0, 1.0)[0] == [1.0, 1.0]


def test_guidance_one_evaluates_the_conditional_half_only():
    assert guide(1.0, 1.0) == ([3.0, 5.0], [(2, [17])])


@pytest.mark.parametrize(
    ("ratio", "inside"), [(0.2, False), (0.3, False), (0.31, True), (2.0, True), (2.1, False)]
)
def test_guidance_outside_its_interval_is_conditional_only(ratio, inside):
    values, calls = guide(2.0, ratio, interval=(0.3, level_of(2.0).noise_ratio))
    assert (values, calls) == (([5.0, 9.0], [(4, [17])]) if inside else ([3.0, 5.0], [(2, [17])]))


def test_guiding_the_output_guides_x0_whatever_the_prediction():
    level = make_schedule(ScheduleConfig()).level(400)
    x, x0_u, x0_c = normal(1, 1, 1, 1), normal(1, 1, 1, 1, seed=1), normal(1, 1, 1, 1, seed=2)
    for prediction in ("noise", "x0", "velocity"):

        def network(x, t, x0, prediction=prediction):
            noise = (x - level.alpha * x0) / level.sigma
            return target(prediction, x0, noise, level.alpha, level.sigma)

        output = guided(network, x0_c, x0_u, 3.0)(x, level)
        x0, _ = to_x0_and_noise(prediction, output, x, level.alpha, level.sigma)
        torch.testing.assert_close(x0, x0_u + 3.0 * (x0_c - x0_u))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "plms"}, "sampler"),
        ({"spacing": "karras"}, "spacing"),
        ({"steps": 0}, "steps"),
        ({"sampler": "ddim", "eta": 1.5}, "eta"),
        ({"sampler": "dpm", "eta": 0.5}, "only the sampler ddim"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance_interval": (3.0, 2.0)}, "guidance_interval"),
        ({"mix_above": 0.0}, "mix_above"),
        ({"mix_above": math.nan}, "mix_above"),
    ],
)
def test_nonsense_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize(("ratio", "value"), [(0.5, 2.0), (2.0, 2.0), (2.1, 1.0), (9.0, 1.0)])
def test_mixing_is_coarse_above_its_level_and_fine_below(ratio, value):
    denoiser = mixed(lambda x, level: 1 * x, lambda x, level: 2 * x, level_of(2.0).noise_ratio)
    assert denoiser(torch.ones(1), level_of(ratio)).tolist() == [value]
