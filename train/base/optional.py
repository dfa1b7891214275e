"""Packages that need not be there."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from train.base.errors import one_line, shortened


def optional(module: str, package: str) -> ModuleType | None:
    """A module that needs an optional package; None where that is not installed, or broken, which a line says."""
    try:
        if importlib.util.find_spec(package) is None:
            return None
        return importlib.import_module(module)
    except Exception as error:  # a package made for others than are installed raises whatever it likes
        if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun, one says it
            reason = one_line(shortened(f"{type(error).__name__}: {error}", 300))
            print(f"{package} is installed, but cannot be imported ({reason}); done without it", file=sys.stderr)
        return None
