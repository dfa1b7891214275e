"""Bytes that a loss keeps for its backward pass, counted from the tensors themselves."""

import gc
import weakref
from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """While entered, follows the storages that operators make; `bytes` are those that are alive."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = self.call(func, args, kwargs or {})
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes(), weakref.ref(storage, lambda _, k=key: self.sizes.pop(k))
        return result

    def call(self, func, args: tuple, kwargs: dict):
        return func(*args, **kwargs)

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.sizes.values())


def kept_per_sample(losses: Callable[[int], Tensor], alive: type[Alive] = Alive) -> int:
    """Of `losses(batch)`: what a second sample adds, so that weights, and copies of them, are out of it."""
    found = []
    for batch in (1, 2):
        gc.collect()
        with alive() as living:
            loss = losses(batch)
        assert loss.requires_grad
        found.append(living.bytes)
    return found[1] - found[0]
