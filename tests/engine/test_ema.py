"""The moving average equals its closed form, and is kept in float32."""

import math

import pytest
import torch
from torch import nn

from tests.float64 import float64
from train.engine.ema import EMA


def scalar(value: float) -> nn.Linear:
    """A model of one weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def average_after(weights: list[float], decay: float, start: float) -> float:
    model = scalar(start)
    ema = EMA(model, decay)
    for value in weights:
        nn.init.constant_(model.weight, value)
        ema.update(model)
    return float(ema.model.weight.detach())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
@float64()
def test_the_average_equals_its_closed_form(decay):
    """sum over n of (1 - d_n) w_n, times every later d, and the start times all of them."""
    weights = [math.sin(n) for n in range(1, 41)]
    kept = [min(decay, n / (n + 9)) for n in range(1, 41)]
    expected = 3.0 * math.prod(kept)
    for n, weight in enumerate(weights):
        expected += (1 - kept[n]) * weight * math.prod(kept[n + 1 :])
    assert average_after(weights, decay, start=3.0) == pytest.approx(expected, abs=1e-12)


def test_the_average_of_constant_weights_is_those_weights():
    assert average_after([2.0] * 20, decay=0.999, start=2.0) == 2.0


def test_ten_thousand_updates_with_decay_0_9999_forget_the_start():
    """Without the warm-up 37% of it would be left."""
    ema = EMA(scalar(0.0), 0.9999)
    assert math.prod(ema.decay_at(n) for n in range(1, 10_001)) < 1e-9


def test_the_warmup_ends_at_the_decay_that_was_asked_for():
    ema = EMA(scalar(0.0), 0.99)
    assert ema.decay_at(1) == 0.1
    assert ema.decay_at(891) == pytest.approx(0.99)
    assert ema.decay_at(890) < 0.99 == ema.decay_at(10_000)


def test_small_updates_are_not_rounded_away():
    """In half precision 1 + 1e-4 is 1: such an average would never move."""
    weights = [1.0 + 1e-4] * 2000
    # 2e-6 is 16 steps of float32 above 1; the warm-up has the average there before updates fall below one.
    assert average_after(weights, decay=0.999, start=1.0) == pytest.approx(1.0 + 1e-4, abs=2e-6)


def test_the_average_is_a_separate_eval_copy_without_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    ema = EMA(model, 0.9)
    nn.init.zeros_(model[0].weight)
    assert ema.model[0].weight.abs().sum() > 0
    assert not ema.model.training
    assert model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_restored_average_goes_on_as_if_never_stopped():
    def run(ema, model, values):
        for value in values:
            nn.init.constant_(model.weight, value)
            ema.update(model)

    model = scalar(0.0)
    whole, first, second = EMA(model, 0.9), EMA(model, 0.9), EMA(scalar(5.0), 0.9)
    values = [0.3, -1.0, 2.0, 0.7, 0.1]
    run(whole, model, values)
    run(first, model, values[:2])
    second.load_state_dict(first.state_dict())
    run(second, model, values[2:])
    assert second.updates == 5
    assert torch.equal(second.model.weight, whole.model.weight)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_average_replaces_the_weights_and_then_restores_them(on_cpu):
    model = scalar(1.0).train()
    ema = EMA(model, 0.5, on_cpu)
    nn.init.constant_(model.weight, 3.0)
    ema.update(model)
    average = float(ema.model.weight)
    assert average not in (1.0, 3.0)
    with ema.averaged(model) as averaged:
        assert float(averaged.weight.detach()) == average
        assert not averaged.training
        assert (averaged is model) == on_cpu
    assert (float(model.weight.detach()), float(ema.model.weight)) == (3.0, average)
    assert model.training
    assert model.weight.requires_grad
