"""Torch without its compiler: what stands in for it says the same, and makes way for it."""

import importlib
import subprocess
import sys

import pytest

from train.memory.without_compiler import COMPILER, without_compiler

SYMBOLS = "torch.fx.experimental.symbolic_shapes"
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


def test_a_stand_in_asked_for_more_makes_way_for_the_compiler():
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
