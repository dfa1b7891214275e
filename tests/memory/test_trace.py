"""Births and deaths of the storages of small functions, in the order in which they happen."""

import gc

import pytest
import torch
from torch import nn

from train.memory.cuda_rules import CudaRules
from train.memory.trace import Trace


@pytest.fixture(autouse=True, scope="module")
def _compiler_imported():
    """By an operator on the meta device; the frames of that import would keep the operands of the first alive."""
    torch.empty(1, device="meta") + 1


def trace(**modules: nn.Module) -> Trace:
    return Trace(modules, CudaRules())


def numbers(count: int = 256, **options) -> torch.Tensor:
    return torch.empty(count, device="meta", **options)


def test_a_view_or_a_write_in_place_makes_no_storage():
    with trace() as traced:
        x = numbers()
        y = x.view(16, 16).t()[3:]
        y.mul_(2).add_(x[0])
    assert [(s.operator, s.bytes, s.died) for s in traced.storages] == [("empty", 1024, None)]


def test_a_storage_lives_until_its_last_view_is_gone():
    with trace() as traced:
        x = numbers()
        view = x[:1]
        del x
        assert traced.storages[0].died is None
        del view
        assert traced.storages[0].died == traced.clock == 2


def test_a_temporary_dies_before_what_comes_after_it_is_born():
    with trace() as traced:
        x = numbers()
        y = (x + 1).exp()
        y = (y, y.sum())
    assert [s.operator for s in traced.storages] == ["empty", "add", "exp", "sum"]
    assert [(s.born, s.died) for s in traced.storages] == [(1, None), (2, 4), (3, None), (5, None)]


def test_what_autograd_keeps_lives_until_the_backward_pass():
    x = numbers(requires_grad=True)
    with trace() as traced:
        with traced.during("forward"):
            loss = x.exp().sum()
        kept = next(s for s in traced.storages if s.operator == "exp")
        assert kept.died is None
        forward_end = traced.clock
        loss.backward()
        assert kept.died > forward_end
    gradients = [s for s in traced.storages if s.phase == "backward" and s.died is None]
    assert [s.bytes for s in gradients] == [1024]


def test_deaths_after_the_end_and_the_cpu_are_not_recorded():
    with trace() as traced:
        x = numbers()
        torch.ones(8) + 1
    del x
    assert [(s.bytes, s.died) for s in traced.storages] == [(1024, None)]
    assert gc.isenabled()


def test_a_storage_has_the_module_active_then_in_both_passes():
    model = nn.Sequential(nn.Linear(8, 4), nn.SiLU(), nn.Linear(4, 2)).to("meta")
    with trace(net=model) as traced:
        with traced.during("forward"):
            loss = model(torch.empty(3, 8, device="meta")).sum()
        loss.backward()
    found = {phase: {s.module for s in traced.storages if s.phase == phase} for phase in ("forward", "backward")}
    assert found["forward"] == {"", "net.0", "net.1", "net.2"}
    assert {"net.0", "net.1", "net.2"} <= found["backward"]


def test_activations_are_what_lives_at_the_end_of_a_forward_pass():
    with trace() as traced:
        x = numbers()
        with traced.during("forward"):
            x = (x + 1).exp()
            traced.end_forward()
    assert {s.operator: s.category for s in traced.storages} == {"empty": "", "add": "", "exp": "activations"}
    assert traced.forward_ends == [traced.clock]


def test_a_continued_trace_does_not_change_the_one_it_continues():
    with trace() as first:
        x = numbers()
    with (second := first.continued(CudaRules())):
        x = x * 2
    assert [s.operator for s in first.storages] == ["empty"]
    assert [(s.operator, s.born) for s in second.storages] == [("empty", 1), ("mul", 2)]
    assert first.clock == 1
