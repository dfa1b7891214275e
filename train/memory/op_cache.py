"""Operators on the meta device, each computed once for each combination of argument shapes.

Many of torch's meta operators are Python programs of 100 to 500 microseconds, and a training step calls the
same ones on the same shapes again and again. Here the second call only makes empty tensors.
"""

import torch
from torch import Tensor


class ShapeCache:
    """What an operator returned for such arguments: (size, stride, dtype) of each tensor."""

    def __init__(self):
        self._operators: dict[int, tuple[str, dict]] = {}  # by id: they live as long as torch

    def call(self, func, args: tuple, kwargs: dict) -> tuple[object, bool]:
        """func(*args, **kwargs), of which no number is ever read, and whether it may have made storages."""
        kind, results = self._operators.get(id(func)) or self._operators.setdefault(id(func), (_kind(func), {}))
        if kind == "view":
            return func(*args, **kwargs), False
        if kind == "in place" and _on_meta(args[0]):
            return (args[0] if func._schema.returns else None), False
        if kind != "fresh":
            return func(*args, **kwargs), True
        key = (_key(args), _key(kwargs.items())) if kwargs else _key(args)
        if key in results:
            made = results[key]
            return (func(*args, **kwargs) if made is None else _make(made)), True
        result = KNOWN.get(func, func)(*args, **kwargs)
        results[key] = _recipe(result, _storages(args))
        return result, True


def _group_norm(x, weight, bias, batch, channels, pixels, groups, eps) -> tuple:
    return x.new_empty(x.shape), x.new_empty(batch, groups), x.new_empty(batch, groups)


def _group_norm_backward(gradient, x, mean, rstd, weight, batch, channels, pixels, groups, wanted) -> tuple:
    sizes = (x.shape, (channels,), (channels,))
    return tuple(x.new_empty(size) if each else None for size, each in zip(sizes, wanted, strict=True))


# What takes torch 2 to 4 milliseconds, by way of some thirty other operators.
KNOWN = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
}


class Uncached:
    """The same for real tensors, whose numbers matter."""

    def call(self, func, args: tuple, kwargs: dict) -> tuple[object, bool]:
        return func(*args, **kwargs), True


SHAPES = ShapeCache()


def _kind(func) -> str:
    if func.namespace != "aten":
        return "other"
    schema = func._schema
    if schema.is_mutable:
        first = schema.arguments[0].alias_info
        alone = sum(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments) == 1
        return "in place" if alone and first is not None and first.is_write else "other"
    if func.is_view:
        return "view"
    return "other" if any(r.alias_info is not None for r in schema.returns) else "fresh"


def _on_meta(value) -> bool:
    return value.is_meta if isinstance(value, Tensor) else all(t.is_meta for t in value)


def _key(values) -> tuple:
    """What the shapes of results depend on. Types are told apart, since 1 == 1.0 == True."""
    parts: list = []
    for value in values:
        if isinstance(value, Tensor):
            parts += (value.shape, value.stride(), value.dtype, value.is_meta)
        elif isinstance(value, list | tuple):
            parts.append(_key(value))
        else:
            parts += (type(value), value)
    return tuple(parts)


def _storages(value) -> set[int]:
    if isinstance(value, Tensor):
        return {value.untyped_storage()._cdata}
    return set().union(*map(_storages, value)) if isinstance(value, list | tuple) else set()


def _recipe(result, arguments: set[int]) -> tuple | None:
    """How to make such a result; None where it is not made of new, dense tensors on the meta device.

    A number is not either: it may be what a tensor on the CPU holds, of which only the shape is known here.
    """
    if isinstance(result, Tensor):
        storage = result.untyped_storage()
        dense = storage.nbytes() == result.numel() * result.element_size()
        new = result.is_meta and storage._cdata not in arguments
        return ("tensor", result.shape, result.stride(), result.dtype) if new and dense else None
    if isinstance(result, list | tuple):
        made = [_recipe(item, arguments) for item in result]
        return None if None in made else (type(result), *made)
    return ("none",) if result is None else None


def _make(recipe: tuple):
    kind, *rest = recipe
    if kind == "tensor":
        size, stride, dtype = rest
        return torch.empty_strided(size, stride, dtype=dtype, device="meta")
    return None if kind == "none" else kind(map(_make, rest))
