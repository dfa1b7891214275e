"""Lean activations: between forward and backward pass, what is cheap to make again is not kept but made again.

Autograd keeps every operand that a derivative needs. In `conv(silu(norm(x)))` these are three tensors of one size, and
two of them can be made from the first, for 1% of a step's time:

    plain     [x] -> norm -> [n] -> silu -> [s] -> conv         [ ] a tensor that autograd keeps
    lean      [x] -> norm -> (n) -> silu -> (s) -> conv         ( ) a recipe in its place: silu of (norm of [x])

While `Lean` is entered, the result of each function in AGAIN is marked with its recipe: the function and its operands,
each a recipe itself or a tensor that is kept. Where autograd would keep a marked tensor, a hook keeps the recipe, and
the tensor dies. In the backward pass another hook calls the same function on the same numbers: same gradients, bitwise.

- Convolutions and attention take time, and sums would lead back through the whole network: they are in no recipe.
  Linear layers on what has one are, where inputs are few, each a product for every value, and positions are many.
- Autocast casts operands within a function, and a recipe does so too. A copy of an operand that autograd wants to keep,
  cast or made contiguous, is known by the nodes of the graph between it and the original.
- A value that has several users, such as n above, is held from the first to the last of them; they follow one another,
  since the backward pass goes through the network block by block.
- A tensor changed in place is not what its recipe makes, and is kept; a kept one that changes later is an error.
"""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nets.linear import linear

AGAIN = {F.group_norm, F.layer_norm, F.silu, F.gelu, F.leaky_relu, F.interpolate, torch.cat, Tensor.mul}
COPIES = {"ToCopyBackward0", "CloneBackward0", "ViewBackward0", "UnsafeViewBackward0"}  # same values in the same order


class Kept:  # a tensor that is kept
    def __init__(self, tensor: Tensor):
        self.tensor = tensor if tensor.is_leaf else tensor.detach()  # without its graph, which may hold this object
        self.version, self.expect = tensor._version, lambda: None

    def value(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor that the backward pass needs has been modified by an inplace operation")
        return self.tensor


class Recipe:
    """A tensor that is made again. `dtype`: autocast's, for operands (but for a norm's weights, which are keywords)."""

    def __init__(self, function, arguments: tuple, keywords: dict, dtype: torch.dtype | None = None):
        self.function, self.dtype = function, dtype
        self.arguments = [_each(argument, _noted) for argument in arguments]
        self.keywords = {name: _noted(value) for name, value in keywords.items()}
        self.users, self.asked, self.made = 0, 0, None

    def expect(self) -> None:
        """Count one more user, who will ask for the value in each backward pass."""
        self.users += 1
        if self.users == 1:
            for operand in _flat([*self.arguments, *self.keywords.values()], Recipe):
                operand.expect()

    def value(self) -> Tensor:
        made = self.made if self.made is not None else self._make()
        self.asked += 1
        self.made = made if self.asked % self.users else None
        return made

    def _make(self) -> Tensor:
        with torch.enable_grad():  # as in the forward pass: without, torch computes a linear layer in another way
            arguments = [_each(argument, lambda v: _filled(v, self.dtype)) for argument in self.arguments]
            return self.function(*arguments, **{n: _filled(v) for n, v in self.keywords.items()}).detach()


class Lean(TorchFunctionMode):
    """While entered, autograd keeps recipes; the backward pass may come later."""

    def __init__(self):
        super().__init__()
        self.hooks = saved_tensors_hooks(self._pack, lambda kept: kept.value())
        self.running: tuple = ()  # the arguments of the function that is running

    def __enter__(self):
        self.hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.hooks.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if torch.compiler.is_compiling():  # what is compiled decides itself what it makes again
            return func(*args, **(kwargs or {}))
        self.running = args
        made = func(*args, **(kwargs or {}))
        self.running = ()
        again = func in AGAIN or (func in (F.linear, linear) and args and _cheap(args[0]))
        if again and made.requires_grad and args and made is not args[0]:
            _root(made).recipe, _root(made).recipe_version = Recipe(func, args, kwargs or {}, made.dtype), made._version
        return made

    def _pack(self, tensor: Tensor) -> Kept | Recipe:
        kept = _recipe_of(tensor) or self._recipe_of_copy(tensor) or Kept(tensor)
        kept.expect()
        return kept

    def _recipe_of_copy(self, tensor: Tensor) -> Recipe | None:
        """If the function that is running has made this tensor by copying one of its operands."""
        root = _root(tensor)
        node, number = root.grad_fn, root.output_nr
        while node is not None and node.name() in COPIES:
            node, number = node.next_functions[0]
            for operand in _flat(self.running, Tensor):
                if _root(operand) is not root and operand.grad_fn is node and operand.output_nr == number:
                    return _view(Recipe(torch.reshape, (operand, root.shape), {}, root.dtype), tensor)
        return None


def _cheap(x: Tensor) -> bool:  # to make a linear layer of it (..., positions, inputs) again
    return _recipe_of(x) is not None and x.is_contiguous() and x.shape[-1] < 4 * x.shape[-2]


def _root(tensor: Tensor) -> Tensor:  # of which it is a view, or itself
    return tensor._base if tensor._is_view() else tensor


def _recipe_of(tensor: Tensor) -> Recipe | None:
    root = _root(tensor)
    recipe = getattr(root, "recipe", None)
    return _view(recipe, tensor) if recipe and root.recipe_version == root._version else None


def _view(recipe: Recipe, tensor: Tensor) -> Recipe:  # recipe: that of the tensor's root
    layout = tensor.shape, tensor.stride(), tensor.storage_offset()
    return Recipe(torch.as_strided, (recipe, *layout), {}) if tensor._is_view() else recipe


def _each(value, change):
    return [change(v) for v in value] if type(value) in (list, tuple) else change(value)


def _flat(values, kind: type) -> list:
    return [v for value in values for v in (value if type(value) in (list, tuple) else [value]) if isinstance(v, kind)]


def _noted(value):
    return _recipe_of(value) or Kept(value) if isinstance(value, Tensor) else value


def _filled(value, dtype: torch.dtype | None = None):
    made = value.value() if isinstance(value, Kept | Recipe) else value
    return made.to(dtype) if dtype and isinstance(made, Tensor) else made
