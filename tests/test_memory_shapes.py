"""The short cuts of a trace: what torch's own meta operators and compiler would have said, sooner."""

import importlib
import subprocess
import sys

import pytest
import torch

from train.memory.op_cache import KNOWN, ShapeCache
from train.memory.without_compiler import COMPILER, without_compiler

aten = torch.ops.aten
SYMBOLS = "torch.fx.experimental.symbolic_shapes"


def described(result) -> list:
    return [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in result]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 8, 4, 4), (1, 8, 5, 3), (3, 8)])
@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, True], [True, False, False]])
def test_what_is_known_of_group_norm_is_what_torch_finds(size, dtype, wanted):
    x, statistic = torch.empty(size, dtype=dtype, device="meta"), torch.empty(size[0], 4, dtype=dtype, device="meta")
    weight = torch.empty(8, dtype=dtype, device="meta")
    sizes = (size[0], 8, x.numel() // size[0] // 8, 4)
    for operator, args in (
        (aten.native_group_norm.default, (x, weight, weight, *sizes, 1e-5)),
        (aten.native_group_norm_backward.default, (x, x, statistic, statistic, weight, *sizes, wanted)),
    ):
        assert operator in KNOWN
        assert described(ShapeCache().call(operator, args, {})[0]) == described(operator(*args))


def test_a_number_on_the_cpu_is_read_anew_each_time():
    """Else, with zero terminal SNR, the sampler would divide by the first noise level's alpha, which is 0."""
    read, cache = aten._local_scalar_dense.default, ShapeCache()
    assert [cache.call(read, (torch.tensor(number),), {})[0] for number in (0.0, 2.0)] == [0.0, 2.0]


TRUTHS = [(True,), (False,)]
PAIRS = [(a, b) for a in (True, False) for b in (True, False)]
SIZES = [(0,), (7,)]
QUESTIONS = {
    "sym_eq": [(3, 3), (3, 4)], "sym_and": PAIRS, "sym_or": PAIRS, "is_nested_int": SIZES,
    "size_hint": SIZES, "guarding_hint_or_throw": SIZES, "has_guarding_hint": SIZES,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:guard_size_oblivious will be removed")
def test_the_stand_in_says_of_plain_sizes_what_the_compiler_says():
    real = importlib.import_module(SYMBOLS)
    for name, answer in COMPILER[SYMBOLS].items():
        for question in QUESTIONS.get(name, TRUTHS):
            if hasattr(real, name):  # torch 2.10 has one name for hints, later ones two others
                assert answer(*question) == getattr(real, name)(*question), name


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_a_trace_does_not_import_the_compiler():
    account = "from train import memcheck; memcheck.main(['--config', 'configs/demo.yaml', '--json']); import sys"
    printed = run(f"{account}; print([name for name in {list(COMPILER)} if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


def test_a_stand_in_that_is_asked_for_more_makes_way_for_the_compiler():
    program = """
import sys, torch
from train.memory.without_compiler import COMPILER, without_compiler
with without_compiler():
    import sympy
    assert not hasattr(sympy, "__path__")
    print(sympy.Integer(2) + 1)
import sympy as real
assert real is not sympy and sympy.Integer is real.Integer
with without_compiler():
    assert sys.modules["sympy"] is real
print(torch._dynamo.config.verbose)
"""
    assert run(program).split() == ["3", "False"]


def test_what_was_imported_already_is_used():
    before = sys.modules.get("torch._dynamo")
    with without_compiler(), without_compiler():
        assert before is None or sys.modules["torch._dynamo"] is before
    assert sys.modules.get("torch._dynamo") is before
