"""Changes of a config as Python programs have them: {"unet.num_heads": 4}, or {"unet": {"num_heads": 4}}."""

import math
import os
from collections.abc import Mapping

import numpy as np
import yaml

from train.base.errors import require
from train.config.load import Dumper, Override


def overrides_of(changes: Mapping[str, object]) -> list[Override]:
    """The overrides that these changes mean, whose errors name them; text means what it does on the command line.

    UserError where a value is of a kind that no config holds.
    """
    overrides = []
    for key, value in changes.items():
        source = f"{key}={value!r}"
        plain = _plain(value, source)
        overrides.append((source, str(key), plain if isinstance(plain, str) else _flow(plain)))
    return overrides


def _plain(value: object, source: str) -> object:
    """What YAML has a word for: paths as text, and NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, source) for item in value]
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value.item() if isinstance(value, np.generic) else value
    known = isinstance(value, str | bool | int | float | None)
    require(known, f"{source}: a {type(value).__name__} is no value of a config")
    return value


def _flow(value: object) -> str:
    """YAML on one line; PyYAML ends the document of a lone scalar with three dots."""
    return yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
