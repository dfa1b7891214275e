"""Our linear layer is torch's, whichever library multiplies."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nets.linear import CHOICE, linear

X = {"image": (2, 5, 7), "rows": (9, 7), "transposed": (2, 7, 5), "no image": (0, 5, 7)}


@pytest.mark.parametrize("c_out", [3, 60])
@pytest.mark.parametrize("kind", X)
def test_values_and_gradients_are_torchs(kind, c_out):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(X[kind]), torch.randn(c_out, 7), torch.randn(c_out)
    x = x.transpose(1, 2) if kind == "transposed" else x

    def found(function, dtype: torch.dtype) -> list[Tensor]:
        operands = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = function(*operands)
        first = torch.autograd.grad(y.square().sum(), operands, create_graph=True)
        return [y, *first, *torch.autograd.grad(first[0].square().sum(), operands[1])]

    for ours, true in zip(found(linear, torch.float32), found(F.linear, torch.float64), strict=True):
        assert float((ours - true).detach().norm()) <= 1e-6 * float(true.detach().norm())


@pytest.mark.skipif(not CHOICE, reason="torch has one of the two libraries here")
def test_on_a_cpu_onednn_multiplies_in_both_directions():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(x, weight).sum().backward()
    called = {event.key: event.count for event in profile.key_averages()}
    assert called["mkldnn::_linear_pointwise"] == 3
    assert not {"aten::mm", "aten::addmm", "aten::matmul"} & set(called)


def test_in_half_precision_torch_casts_as_it_does():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
