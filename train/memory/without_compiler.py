"""Stand-ins for torch's compiler, whose import takes two seconds.

Even when nothing is compiled, torch calls a few functions of the compiler's modules, for example to exclude an
optimizer from compilation or to ask whether a size is known. Here every size is a plain number.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import eq
from types import ModuleType, SimpleNamespace

import torch

COMPILER = {
    # Optimizers, checkpointing and some meta operators exclude functions from compilation.
    "torch._dynamo": {
        "config": SimpleNamespace(error_on_nested_fx_trace=False),
        "disable": lambda function, recursive=True, wrapping=True: function,
        "graph_break": lambda *message: None,
    },
    # Meta operators ask what is known about sizes that might be symbolic.
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
    """A module in which access to an attribute that it does not have imports the real modules instead."""

    def __getattr__(self, name: str):
        if name.startswith("__"):  # the import system reads such names of every module
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the context torch uses the stand-ins, unless its compiler has been imported already."""
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    for name, attributes in COMPILER.items():
        sys.modules[name] = _StandIn(name)
        vars(sys.modules[name]).update(attributes)
    torch._dynamo = sys.modules["torch._dynamo"]
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _StandIn):
        del torch._dynamo
