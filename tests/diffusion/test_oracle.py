"""Schedules and samplers agree with diffusers' schedulers, step by step, with the same noise.

Both compute in float64, where two ways of writing the same step differ by next to nothing on any processor.
"""

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
from tests.float64 import float64

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
FLOAT32 = torch.float32
# A float64 rounding is 1e-16 of a value. 60 steps of some 20 roundings, and the 1000 factors of an alpha-bar,
# magnified by at most 1 / alpha = 2e4 of the last cosine level, stay below this. So does the noise of deviation
# 1e-10 that diffusers' DDPM adds in its last step.
TOLERANCE = 1e-8


@pytest.fixture(autouse=True)
def _float64():
    """Also in tables of diffusers, and in steps that cast the sample: they are float32 by name."""
    with float64():
        yield


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
    """A fixed nonlinear denoiser: that of Gaussian data, plus a mix of neighbours.

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


def assert_same_trajectory(config: ScheduleConfig, sampling: SamplingConfig) -> None:
    shape = (2, 4, 8, 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    noises = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(sampling.steps)]
    schedule = make_schedule(config)
    ours = our_calls(schedule, sampling, x, noises)
    theirs = their_calls(schedule, sampling, x, noises, copy)
    assert [t for t, _ in ours] == [t for t, _ in theirs]
    for (t, our_x), (_, their_x) in zip(ours, theirs, strict=True):
        assert our_x.dtype == their_x.dtype == torch.float64
        error = (our_x - their_x).abs().max() / their_x.abs().max()
        assert error <= TOLERANCE, f"{config} {sampling}: {error:.1e} at the network call for t = {t}"
    assert_float32_loses_only_its_roundings(schedule, sampling, x, noises, ours)


def assert_float32_loses_only_its_roundings(schedule, sampling, x, noises, exact) -> None:
    """At each call, x in float32 is x in float64 but for 8 roundings of a value in each step before.

    Where x0 is (x - ...) / alpha of a noise prediction, and in Heun's correction by steps of sigma / alpha, a step
    magnifies them by (new alpha) / alpha.
    """
    found = our_calls(schedule, sampling, x.to(FLOAT32), [noise.to(FLOAT32) for noise in noises])
    magnifies = schedule.config.prediction == "noise" or sampling.sampler == "heun"
    largest, before = max(x.abs().max() for _, x in exact), []
    for (t, x32), (_, x64) in zip(found, exact, strict=True):
        assert x32.dtype == FLOAT32
        alpha = schedule.level(t).alpha if t >= 0 else 1.0
        bound = 8 * 2**-24 * largest * (1 + sum(alpha / earlier if magnifies else 1.0 for earlier in before))
        error = (x32 - x64).abs().max()
        assert error <= bound, f"{schedule.config} {sampling}: {error:.1e} in float32, of {bound:.1e}, at t = {t}"
        before.append(alpha)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_schedule_agrees_with_diffusers(kind, zero_terminal_snr):
    config = ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr, prediction="velocity")
    schedule = make_schedule(config)
    for oracle in (make_oracle("ddpm", config, "leading"), make_oracle("ddim", config, "leading")):
        assert oracle.betas.dtype == torch.float64
        torch.testing.assert_close(schedule.betas, oracle.betas, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(schedule.alphas_cumprod, oracle.alphas_cumprod, rtol=0, atol=TOLERANCE)
        x0, noise = torch.tensor([[1.0], [-1.0]]).expand(2, 1000)
        noised, expected = (s.add_noise(x0, noise, torch.arange(1000)) for s in (schedule, oracle))
        torch.testing.assert_close(noised, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_agree_with_diffusers_for_any_number_of_steps(spacing):
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
def test_sampler_agrees_with_diffusers_at_unevenly_spaced_steps(sampler_eta, steps):
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
    assert_same_trajectory(config, SamplingConfig(sampler, 20, spacing, eta))
