"""float64 throughout, for comparisons of two ways to compute the same thing.

Two orders of the same sums differ by roundings, which depend on the processor and on the number of threads, and
AdamW makes a step of full length of a gradient that is nothing but rounding. In float64 roundings are 1e-16, far
below AdamW's eps of 1e-8, so that tolerances can be tight and far away all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # which optimizers import when first used: not in there, where it would keep the wrong float32


@contextmanager
def float64() -> Iterator[None]:
    """Here what is called float32, by this project or by diffusers, is float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(np, "float32", np.float64),
        ):
            yield
    finally:
        torch.set_default_dtype(default)
