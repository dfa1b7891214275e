"""Records every storage that a run of the real code makes on the meta device, from its birth to its death.

A storage is born in the operator whose result first uses it (a view uses an old one) and dies with its last
reference, held by Python or by autograd; the clock counts births and deaths. Each is recorded with the phase, the
operator and the active module. In the backward pass that is the module whose forward pass made the current autograd
node, found by the node's sequence number.
"""

import gc
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from nets.checkpointing import Checkpointed
from train.engine.step import Learner
from train.memory.cuda_rules import CudaRules
from train.memory.op_cache import SHAPES
from train.memory.scratch import scratch_of

SCRATCH = "scratch"  # the category of what a kernel may take inside


@dataclass(slots=True)
class Storage:
    """The memory of one or more tensors, and where it came from."""

    bytes: int
    itemsize: int  # bytes of an element
    phase: str
    operator: str
    module: str  # the innermost active one, its component first: "UNet.mid_block.resnets.0.conv1"
    born: int
    died: int | None = None
    category: str = ""  # one of account.CATEGORIES, or SCRATCH; empty for temporaries


class Trace(TorchDispatchMode):
    """While entered, records the storages that operators make on `device`, under the rules of a CUDA GPU."""

    def __init__(self, modules: dict[str, nn.Module], rules: CudaRules, device: str = "meta"):
        super().__init__()
        self.rules, self.device = rules, device
        self.storages: list[Storage] = []
        self.clock = 0
        self.forward_ends: list[int] = []  # the clock at the end of each micro-batch's forward pass
        self.phase = "setup"
        self._alive: dict[int, tuple[weakref.ref, Storage]] = {}
        self._shapes = SHAPES if device == "meta" else None
        self._names = {m: f"{c}.{n}".rstrip(".") for c, root in modules.items() for n, m in root.named_modules()}
        self._scopes: list[str] = []
        self._borders: list[tuple[int, str]] = [(0, "")]  # (number of the next autograd node, active module)
        self._precisions: dict[nn.Module, torch.dtype | None] = {}  # in the last forward pass, for recomputation
        self._recomputations: list[ExitStack] = []
        rules.on_half_copy = lambda weight, copy: self.label([copy], "half copies", weight)

    def continued(self, rules: CudaRules) -> "Trace":
        """A new trace that continues where this one ended; this one is not changed."""
        other = Trace({}, rules, self.device)
        other.storages, other.clock, other._names = self.storages.copy(), self.clock, self._names
        other._alive = self._alive_at_end.copy()
        return other

    # ---- called by the run

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = outer

    def label(self, tensors: Iterable[Tensor], category: str, owner: str | Tensor) -> None:
        """Set the category of these tensors, and their module: the one of this name, or that of this tensor."""
        module = owner if isinstance(owner, str) else self._record(owner).module
        for storage in map(self._record, tensors):
            storage.category, storage.module = category, module

    def label_weights(self) -> None:
        for module, name in self._names.items():
            self.label([*module.parameters(recurse=False), *module.buffers(recurse=False)], "weights", name)

    def label_learned(self, learner: Learner) -> None:
        """Label what the learner's step has left: gradients, and the optimizer's state."""
        for p in learner.parameters:
            self.label([p.grad], "gradients", p)
        for p, state in learner.optimizer.state.items():
            self.label([t for t in state.values() if t.device.type == self.device], "optimizer state", p)

    def end_forward(self) -> None:
        """Label all living storages of the forward pass as activations."""
        for _, storage in self._alive.values():
            if storage.phase == "forward" and not storage.category:
                storage.category = "activations"
        self.forward_ends.append(self.clock)

    # ---- called by torch

    def __enter__(self):
        self._hooks = (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        )
        self._collects = gc.isenabled()
        gc.disable()  # so that the moments of death do not depend on when cycles are collected
        self.rules.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.rules.__exit__(*error)
        if self._collects:
            gc.enable()
        self._alive_at_end, self._alive = self._alive, {}  # later deaths are not recorded
        for hook in self._hooks:
            hook.remove()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; torch's own check costs time in every call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result, new = self._shapes.call(func, args, kwargs) if self._shapes else (func(*args, **kwargs), True)
        if new:
            self._record_result(result, func)
        if func is torch.ops.aten._safe_softmax.default:
            self._record(torch.empty_like(result, dtype=torch.bool), func)  # its internal mask
        self._record_scratch(scratch_of(func, args, result), func)
        return result

    def _record_scratch(self, sizes: list[int], func) -> None:
        """Storages of these bytes, which live together and are gone when the operator returns."""
        tensors = [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]
        for tensor in tensors:
            self._record(tensor, func).category = SCRATCH

    def _record_result(self, result, func) -> None:
        if isinstance(result, Tensor):
            if result.device.type == self.device:
                self._record(result, func)
        elif isinstance(result, list | tuple):
            for item in result:
                self._record_result(item, func)

    def _record(self, tensor: Tensor, func=None) -> Storage:
        """The record of a tensor's storage, made if there is none yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if known := self._alive.get(key):
            return known[1]
        self.clock += 1
        operator = func.overloadpacket.__name__ if func else ""
        phase = "backward" if self.rules.backward else self.phase
        record = Storage(storage.nbytes(), tensor.element_size(), phase, operator, self._module(), self.clock)
        self.storages.append(record)
        self._alive[key] = (weakref.ref(storage, lambda _: self._record_death(key)), record)
        return record

    def _record_death(self, key: int) -> None:
        if dead := self._alive.pop(key, None):
            self.clock += 1
            dead[1].died = self.clock

    # ---- the active module

    def _module(self) -> str:
        if self._scopes:
            return self._scopes[-1]
        if self.rules.backward and (node := torch._C._current_autograd_node()) is not None:
            position = bisect_right(self._borders, node._sequence_nr(), key=lambda border: border[0]) - 1
            return self._borders[position][1]
        return ""

    def _enter_module(self, module: nn.Module, args) -> None:
        if isinstance(module, Checkpointed):
            # Function modes are off in the backward pass, where checkpointing recomputes the forward pass.
            if self.rules.backward:
                recomputation = ExitStack()
                recomputation.enter_context(self.rules)
                recomputation.enter_context(self.rules.autocast(self._precisions[module]))
                self._recomputations.append(recomputation)
            else:
                self._precisions[module] = self.rules.precision
        self._scopes.append(self._names.get(module, ""))
        self._mark_border()

    def _leave_module(self, module: nn.Module, args, output) -> None:
        self._scopes.pop()
        self._mark_border()
        if self._recomputations and isinstance(module, Checkpointed):
            self._recomputations.pop().close()

    def _mark_border(self) -> None:
        if not self.rules.backward:
            self._borders.append((torch.autograd._get_sequence_nr(), self._scopes[-1] if self._scopes else ""))


class NoTrace(nullcontext):
    """Null trace, for real CUDA runs, where torch counts the bytes."""

    phase = ""
    during = nullcontext

    def ignore(self, *args) -> None:
        pass

    label = label_weights = label_learned = end_forward = ignore

    def continued(self, rules: CudaRules) -> "NoTrace":
        return self
