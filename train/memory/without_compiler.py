"""Torch without its compiler, whose import takes two seconds.

Even where nothing is compiled, torch asks the compiler's modules a few things: not to compile an optimizer, or
whether a size is known. Here every size is a plain number, and the answers are short.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import eq
from types import ModuleType, SimpleNamespace

import torch

COMPILER = {
    # Optimizers, checkpointing and some meta operators tell it what not to compile.
    "torch._dynamo": {
        "config": SimpleNamespace(error_on_nested_fx_trace=False),
        "disable": lambda function, recursive=True, wrapping=True: function,
        "graph_break": lambda *message: None,
    },
    # Meta operators ask what is known of sizes that might be symbols.
    "torch.fx.experimental.symbolic_shapes": {
        "expect_true": bool, "statically_known_true": bool,
        "guard_or_false": bool, "guard_or_true": bool, "guard_size_oblivious": bool,
        "size_hint": int, "guarding_hint_or_throw": int, "has_guarding_hint": lambda size: True,
        "sym_eq": eq, "sym_and": lambda *truths: all(truths), "sym_or": lambda *truths: any(truths),
        "is_nested_int": lambda size: False,
    },
    "sympy": {"Basic": type("Basic", (), {})},
    "torch.utils._sympy.functions": {"Max": None},
}  # fmt: skip


class _StandIn(ModuleType):
    """Gives these answers; when it is asked for anything else, the real modules are imported."""

    def __init__(self, name: str, answers: dict):
        super().__init__(name)
        self.__dict__.update(answers)

    def __getattr__(self, name: str):
        if name.startswith("__"):  # import looks for such names in every module
            raise AttributeError(name)
        _withdraw()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """While entered, torch asks the stand-ins; those that have imported its compiler already go on with that."""
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    sys.modules.update({name: _StandIn(name, answers) for name, answers in COMPILER.items()})
    torch._dynamo = sys.modules["torch._dynamo"]
    try:
        yield
    finally:
        _withdraw()


def _withdraw() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _StandIn):
        del torch._dynamo
