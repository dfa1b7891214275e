"""What lives when: every storage that a run of the real code makes on the meta device, from birth to death.

A storage is born in the operator whose result first uses it (a view uses an old one) and dies with its last
reference, held by Python or by autograd; the clock counts births and deaths. Nothing is estimated: meta
tensors carry shapes and dtypes through torch's own operators, autograd and optimizer, only no numbers.

Each birth notes the phase, the operator, and the module at work. In the backward pass that is the module
whose forward made the autograd node that runs: nodes are numbered as they are made, so the number finds it.
"""

import gc
import weakref
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from nets.checkpointing import Checkpointed
from train.memory.cuda_rules import Card
from train.memory.op_cache import SHAPES, Uncached


@dataclass(slots=True)
class Storage:
    """A piece of memory, and where it came from."""

    bytes: int
    phase: str
    operator: str
    module: str
    """Qualified name of the innermost module at work, its component first ("UNet.mid_block.resnets.0.conv1")."""
    born: int
    died: int | None = None
    category: str = ""
    """Once it is known to be more than a temporary: "weights", "gradients", ..."""


@dataclass(frozen=True)
class Passage:
    """A part of a run, which can be written down again."""

    storages: list[Storage]
    start: int
    end: int
    forward_ends: list[int]
    left: dict[Hashable, tuple[Storage, torch.Size, tuple[int, ...], torch.dtype]]
    """The tensors that outlive it: storage, size, stride, dtype."""


class Trace(TorchDispatchMode):
    """While entered, records the storages that operators make on `device`, as a `card` would."""

    def __init__(self, modules: dict[str, nn.Module], card: Card, device: str = "meta"):
        super().__init__()
        self.card, self.device = card, device
        self.storages: list[Storage] = []
        self.clock = 0
        self.forward_ends: list[int] = []
        """When each micro-batch's forward pass ended."""
        self.phase = "setup"
        self._alive: dict[int, tuple[weakref.ref, Storage]] = {}
        self._shapes = SHAPES if device == "meta" else Uncached()
        self._names = {m: f"{c}.{n}".rstrip(".") for c, root in modules.items() for n, m in root.named_modules()}
        self._scopes: list[str] = []
        self._borders: list[tuple[int, str]] = [(0, "")]  # (number of the next autograd node, module at work)
        self._precisions: dict[nn.Module, torch.dtype | None] = {}  # of the last forward, for its recomputation
        self._recomputations: list[ExitStack] = []
        card.on_half_copy = lambda weight, copy: self.label([copy], "half copies", like=weight)

    def continued(self, card: Card) -> "Trace":
        """A trace that goes on from where this one has ended; this one stays, for others to go on from."""
        other = Trace({}, card, self.device)
        other.storages, other.clock, other._names = self.storages.copy(), self.clock, self._names
        other._alive = self._left.copy()
        return other

    def again(self, known: dict, key: Hashable, part: Callable[[], dict]) -> dict:
        """What `part` returns; where the key is known, the same is written down again instead of running it.

        Of what it makes only the tensors that it returns, by any names, outlive it; each has a storage of its own.
        """
        if key in known:
            return self._write_down(known[key])
        first, start, ends = len(self.storages), self.clock, len(self.forward_ends)
        left = part()
        known[key] = Passage(
            self.storages[first:], start, self.clock, self.forward_ends[ends:],
            {name: (self.find(t), t.shape, t.stride(), t.dtype) for name, t in left.items()},
        )  # fmt: skip
        return left

    def _write_down(self, passage: Passage) -> dict[Hashable, Tensor]:
        first, later = len(self.storages), self.clock - passage.start
        left, keys = {}, {}
        for name, (then, *shape, dtype) in passage.left.items():
            left[name] = torch.empty_strided(*shape, dtype=dtype, device=self.device)
            keys[id(then)] = left[name].untyped_storage()._cdata
        del self.storages[first:]  # they are born in their turn
        for s in passage.storages:
            key = keys.get(id(s))
            died = s.died + later if key is None else None
            now = Storage(s.bytes, s.phase, s.operator, s.module, s.born + later, died, s.category)
            self.storages.append(now)
            if key is not None:
                self._alive[key] = (self._alive[key][0], now)
        self.forward_ends += [end + later for end in passage.forward_ends]
        self.clock = passage.end + later
        return left

    # ---- what the run tells

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = outer

    def label(self, tensors, category: str, module: str | None = None, like: Tensor | None = None) -> None:
        """Say what these tensors are, and whose: of `module`, or of the owner of `like`."""
        if like is not None:
            module = self.find(like).module
        for tensor in tensors:
            storage = self.find(tensor)
            storage.category = category
            if module is not None:
                storage.module = module

    def label_weights(self) -> None:
        for module, name in self._names.items():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            self.label(tensors, "weights", module=name)

    def label_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        for p in parameters:
            self.label([p.grad], "gradients", like=p)

    def end_forward(self) -> None:
        """What the forward pass has made and left is kept for the backward pass."""
        for storage in self.living():
            if storage.phase == "forward" and not storage.category:
                storage.category = "activations"
        self.forward_ends.append(self.clock)

    def find(self, tensor: Tensor) -> Storage:
        """The record of a tensor's storage, which is made where there is none yet."""
        return self._see(tensor, "")

    def living(self) -> list[Storage]:
        return [storage for _, storage in self._alive.values()]

    # ---- what torch tells

    def __enter__(self):
        self._hooks = (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        )
        self._collects = gc.isenabled()
        gc.disable()  # so that nothing dies later than its last reference
        self.card.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.card.__exit__(*error)
        if self._collects:
            gc.enable()
        self._left, self._alive = self._alive, {}  # what is alive now is alive at the end
        for hook in self._hooks:
            hook.remove()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and every call would ask

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, new = self._shapes.call(func, args, kwargs or {})
        if new:
            self._see_all(result, func)
        if func is torch.ops.aten._safe_softmax.default:
            self._see(torch.empty_like(result, dtype=torch.bool), func)  # the mask that it makes inside
        return result

    def _see_all(self, result, func) -> None:
        if isinstance(result, Tensor):
            if result.device.type == self.device:
                self._see(result, func)
        elif isinstance(result, list | tuple):
            for item in result:
                self._see_all(item, func)

    def _see(self, tensor: Tensor, func) -> Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if known := self._alive.get(key):
            return known[1]
        self.clock += 1
        operator = func.overloadpacket.__name__ if func else ""
        phase = "backward" if self.card.backward else self.phase
        record = Storage(storage.nbytes(), phase, operator, self._module(), self.clock)
        self.storages.append(record)
        self._alive[key] = (weakref.ref(storage, lambda _: self._bury(key)), record)
        return record

    def _bury(self, key: int) -> None:
        if dead := self._alive.pop(key, None):
            self.clock += 1
            dead[1].died = self.clock

    # ---- which module is at work

    def _module(self) -> str:
        if self._scopes:
            return self._scopes[-1]
        if self.card.backward and (node := torch._C._current_autograd_node()) is not None:
            position = bisect_right(self._borders, node._sequence_nr(), key=lambda border: border[0]) - 1
            return self._borders[position][1]
        return ""

    def _enter_module(self, module: nn.Module, args) -> None:
        if isinstance(module, Checkpointed):
            # Checkpointing computes a forward again inside the backward pass, which no function mode sees.
            if self.card.backward:
                again = ExitStack()
                again.enter_context(self.card)
                again.enter_context(self.card.autocast(self._precisions[module]))
                self._recomputations.append(again)
            else:
                self._precisions[module] = self.card.precision
        self._scopes.append(self._names.get(module, ""))
        self._mark_border()

    def _leave_module(self, module: nn.Module, args, output) -> None:
        self._scopes.pop()
        self._mark_border()
        if self._recomputations and isinstance(module, Checkpointed):
            self._recomputations.pop().close()

    def _mark_border(self) -> None:
        if not self.card.backward:
            self._borders.append((torch.autograd._get_sequence_nr(), self._scopes[-1] if self._scopes else ""))
