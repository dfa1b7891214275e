"""The learning rate as numbers, and AdamW as the paper has it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from train.base.errors import UserError
from train.config.sections import OptimConfig
from train.engine.optim import learning_rate, make_adamw

COSINE = OptimConfig(learning_rate=2.0, lr_schedule="cosine", warmup_steps=4)


def rates(config: OptimConfig, total: int) -> list[float]:
    return [learning_rate(config, step, total) for step in range(total)]


def test_the_rate_rises_through_the_warmup_and_is_never_zero():
    assert rates(COSINE, 12)[:4] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(replace(COSINE, warmup_steps=0), 0, 12) == 2.0


def test_after_the_warmup_the_rate_falls_along_half_a_cosine():
    for i, rate in enumerate(rates(COSINE, 12)[4:]):
        assert rate == pytest.approx(1 + math.cos(math.pi * i / 8), abs=1e-12)
    assert learning_rate(COSINE, 12, 12) == 0  # where it would arrive


def test_a_constant_rate_stays():
    assert rates(replace(COSINE, lr_schedule="constant"), 12)[4:] == [2.0] * 8


@pytest.mark.parametrize("total", [1, 3, 4, 5])
def test_a_run_about_as_long_as_its_warmup_has_positive_rates(total):
    assert all(0 < rate <= 2 for rate in rates(COSINE, total))


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_takes_the_steps_of_its_paper(fused):
    """Loshchilov and Hutter 2019, algorithm 2, in float64 by hand."""
    config = OptimConfig(learning_rate=0.1, betas=(0.8, 0.95), weight_decay=0.03, fused=fused)
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = make_adamw([weight], config)
    theta, m, v = weight.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for t in range(1, 6):
        gradient = torch.tensor([0.3 * t, -1.0 / t], dtype=torch.float64)
        weight.grad = gradient
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        theta = theta - 0.1 * update - 0.1 * 0.03 * theta
        torch.testing.assert_close(weight.detach(), theta, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_begun_in_the_other_form_goes_on_in_its_own(fused):
    def learnt(form: bool) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.linspace(-1, 1, 7))
        return weight, make_adamw([weight], replace(COSINE, learning_rate=0.1, fused=form))

    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        weight.grad = weight.detach().sin()
        optimizer.step()

    before, saved = learnt(not fused)
    step(before, saved)
    weight, optimizer = learnt(fused)
    weight.data.copy_(before)
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    for each in ((before, saved), (weight, optimizer)):
        step(*each)
    assert bool(optimizer.param_groups[0]["fused"]) is fused
    torch.testing.assert_close(weight, before, rtol=1e-6, atol=0)


def test_adamw_is_fused_unless_the_config_says_otherwise():
    assert make_adamw([nn.Parameter(torch.zeros(1))], OptimConfig()).param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate and max_grad_norm must be positive"),
        ({"max_grad_norm": -1.0}, "learning_rate and max_grad_norm must be positive"),
        ({"learning_rate": math.nan}, "must be positive"),
        ({"warmup_steps": -1}, "warmup_steps and weight_decay must not be negative"),
        ({"weight_decay": -0.1}, "warmup_steps and weight_decay must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(change, words):
    with pytest.raises(UserError, match=words):
        replace(COSINE, **change)
