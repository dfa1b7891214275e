"""Schedules and samplers agree with diffusers' schedulers, step by step, with the same noise."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffusion.sampling import SamplingConfig, sample
from diffusion.schedule import ScheduleConfig, make_schedule, timesteps

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"noise": "epsilon", "x0": "sample", "velocity": "v_prediction"}
SPACINGS = ("leading", "trailing", "linspace")
# numpy 2 and the schedulers' np.array(tensor)
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

ORACLES = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "heun": (HeunDiscreteScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}
# Where diffusers' own default timesteps, set_timesteps(steps), are ours; elsewhere it is given ours.
SAME_TIMESTEPS = {
    "ddpm": SPACINGS,
    "ddim": SPACINGS,
    "dpm": ("trailing",),
    "heun": ("leading", "trailing"),
    "euler": ("leading", "trailing"),
}


def make_oracle(sampler: str, config: ScheduleConfig, spacing: str):
    oracle_class, options = ORACLES[sampler]
    if config.zero_terminal_snr:
        options = {**options, "rescale_betas_zero_snr": True}
    return oracle_class(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=KINDS[config.kind],
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=PREDICTIONS[config.prediction],
        timestep_spacing=spacing,
        **options,
    )


def network(schedule, x: torch.Tensor, t: int) -> torch.Tensor:
    """A fixed nonlinear denoiser, float32: that of Gaussian data, plus a mix of neighbours.

    Like a trained network, unlike an arbitrary function, its x0 and noise have finite limits at both ends.
    """
    _, alpha, sigma = schedule.level(t)
    variance = 0.25 * alpha**2 + sigma**2
    mix = 0.3 * torch.sin(2 * x.roll(1, -1) + t / 500)
    noise = sigma / variance * x - alpha * mix
    x0 = 0.25 * alpha / variance * x + sigma * mix
    return {"noise": noise, "x0": x0, "velocity": alpha * noise - sigma * x0}[schedule.config.prediction]


def our_calls(schedule, sampling, x, noises):
    """Every (t, x) at which the network is called, and the final sample at the end."""
    calls = []

    def denoiser(x, level):
        calls.append((level.t, x))
        return network(schedule, x, level.t)

    noises = iter(noises)
    final = sample(denoiser, x, schedule, sampling, lambda: next(noises))
    return [*calls, (-1, final)]


def their_calls(schedule, sampling, x, noises, generator):
    config = schedule.config
    oracle = make_oracle(sampling.sampler, config, sampling.spacing)
    ts = timesteps(config.num_train_timesteps, sampling.steps, sampling.spacing)
    if sampling.spacing in SAME_TIMESTEPS[sampling.sampler]:
        oracle.set_timesteps(sampling.steps)
    else:
        oracle.set_timesteps(timesteps=ts)
    if sampling.sampler in ("heun", "euler"):
        x = x * (oracle.sigmas[0] ** 2 + 1) ** 0.5  # it steps x / alpha, and gives the network x back
    calls = []
    for i, t in enumerate(oracle.timesteps):
        scaled = oracle.scale_model_input(x, t)
        calls.append((int(t), scaled))
        options = {}
        if sampling.sampler == "ddpm":
            options = {"generator": generator}
        if sampling.sampler == "ddim":
            # diffusers' DDIM takes T // steps for the distance to the next timestep, also where it is not
            # (linspace; trailing with steps that do not divide T). Tell it the true one:
            # T // (T / gap) = gap.
            gap = ts[i] - (ts[i + 1] if i + 1 < len(ts) else -1)
            oracle.num_inference_steps = Fraction(config.num_train_timesteps, gap)
            options = {"eta": sampling.eta, "variance_noise": noises[i] if sampling.eta else None}
        x = oracle.step(network(schedule, scaled, int(t)), t, x, **options).prev_sample
    return [*calls, (-1, x)]


def assert_same_trajectory(config: ScheduleConfig, sampling: SamplingConfig, tolerance: float = 1e-5) -> None:
    shape = (2, 4, 8, 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    noises = [torch.randn(shape, generator=generator) for _ in range(sampling.steps)]
    schedule = make_schedule(config)
    ours = our_calls(schedule, sampling, x, noises)
    theirs = their_calls(schedule, sampling, x, noises, copy)
    assert [t for t, _ in ours] == [t for t, _ in theirs]
    for (t, our_x), (_, their_x) in zip(ours, theirs, strict=True):
        assert our_x.dtype == torch.float32
        error = (our_x - their_x).abs().max() / their_x.abs().max()
        bound = tolerance
        alpha_T = schedule.level(ours[0][0]).alpha
        if 0 < alpha_T < 1e-3 and (config.prediction == "noise" or sampling.sampler == "euler"):
            # The last cosine level has alpha = 5e-5: x0 = (x - ...) / alpha of a noise prediction, and
            # x / alpha, which diffusers' Euler keeps, magnify the rounding of fp32 by 1 / alpha. The next x
            # has alpha(t) times that.
            bound = 4 * 2**-24 * (schedule.level(t).alpha if t >= 0 else 1.0) / alpha_T
        assert error <= bound, f"{config} {sampling}: {error:.1e} at the network call for t = {t}"


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_schedule_agrees_with_diffusers(kind, zero_terminal_snr):
    config = ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr, prediction="velocity")
    schedule = make_schedule(config)
    for oracle in (make_oracle("ddpm", config, "leading"), make_oracle("ddim", config, "leading")):
        torch.testing.assert_close(schedule.betas.float(), oracle.betas, rtol=0, atol=1e-5)
        torch.testing.assert_close(schedule.alphas_cumprod.float(), oracle.alphas_cumprod, rtol=0, atol=1e-5)
        # Its fp32 rounding of alpha-bar = 0.99996 is 1.2e-5 of sigma at the first cosine timesteps.
        x0, noise = torch.tensor([[1.0], [-1.0]]).expand(2, 1000)
        noised, expected = (s.add_noise(x0, noise, torch.arange(1000)) for s in (schedule, oracle))
        torch.testing.assert_close(noised, expected, rtol=0, atol=1.5e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_agree_with_diffusers_for_every_number_of_steps(spacing):
    oracle = make_oracle("ddim", ScheduleConfig(), spacing)
    for steps in range(2, 1001):
        oracle.set_timesteps(steps)
        expected = [
            t for t in oracle.timesteps.tolist() if t >= 0
        ]  # its 61 trailing steps end in timestep -1
        assert timesteps(1000, steps, spacing) == expected


SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("dpm", 0.0), ("heun", 0.0), ("euler", 0.0)]
# diffusers' Heun cannot start near zero SNR (test_heun_survives_a_terminal_snr_near_zero).
CASES = [
    case
    for case in product(SAMPLERS, KINDS, PREDICTIONS, SPACINGS)
    if not (case[0][0] == "heun" and case[1] == "cosine" and case[3] != "leading")
]


@pytest.mark.parametrize(("sampler_eta", "kind", "prediction", "spacing"), CASES)
def test_sampler_agrees_with_diffusers(sampler_eta, kind, prediction, spacing):
    sampler, eta = sampler_eta
    config = ScheduleConfig(kind, prediction=prediction)
    assert_same_trajectory(config, SamplingConfig(sampler, 20, spacing, eta))


@pytest.mark.parametrize("steps", [1, 7, 48, 60])
@pytest.mark.parametrize("sampler_eta", SAMPLERS)
def test_sampler_agrees_with_diffusers_when_steps_do_not_divide_the_timesteps(sampler_eta, steps):
    sampler, eta = sampler_eta
    config = ScheduleConfig(prediction="velocity")
    assert_same_trajectory(config, SamplingConfig(sampler, steps, "trailing", eta))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["x0", "velocity"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler_eta", [s for s in SAMPLERS if s[0] != "heun"])  # its oracle cannot
def test_sampler_agrees_with_diffusers_from_zero_terminal_snr(sampler_eta, kind, prediction, spacing):
    sampler, eta = sampler_eta
    config = ScheduleConfig(kind, zero_terminal_snr=True, prediction=prediction)
    # diffusers rescales in fp32, which moves the first cosine sigmas by 1.2e-5: see the schedule's test.
    tolerance = 1e-4 if kind == "cosine" else 1e-5
    assert_same_trajectory(config, SamplingConfig(sampler, 20, spacing, eta), tolerance)
