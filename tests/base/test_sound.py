"""What training cannot have made is named before it is kept or used."""

import math

import pytest
import torch

from train.base.sound import LARGEST_WEIGHT, what_is_wrong


@pytest.mark.parametrize("value", [0.0, -1e-45, 3.0, -LARGEST_WEIGHT])
def test_states_as_training_makes_them_are_sound(value):
    weights = {"a": torch.full((3,), value), "b": torch.empty(0), "n": torch.tensor([7])}
    assert what_is_wrong({"model": weights, "list": [(weights,)], "updates": 3, "scale": 2.0**20}) == ""
    assert what_is_wrong({"optimizer": {"state": {0: torch.tensor([1e30])}}}) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e5, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_single_spoilt_value_is_found_and_its_tensor_named(value, dtype):
    weights = torch.zeros(2, 3, dtype=dtype)
    weights[1, 1] = value
    said = what_is_wrong({"model": {"good": torch.ones(2)}, "ema": [{"conv.weight": weights}]})
    assert said.startswith("ema.0.conv.weight holds ")
    assert ("no finite numbers" in said) == (not math.isfinite(value))


def test_moments_may_be_large_and_must_be_finite():
    moments = {0: {"exp_avg": torch.ones(2), "exp_avg_sq": torch.tensor([1.0, math.inf])}}
    said = what_is_wrong({"optimizer": {"state": moments}})
    assert said == "optimizer.state.0.exp_avg_sq holds values that are no finite numbers"
