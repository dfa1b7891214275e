"""The emulated autocast is torch's own: the same names, and on every model the same operators and dtypes.

A build of torch without CUDA can still run CUDA's autocast on fake tensors, as long as no gradient is asked for.
"""

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nets.attention import SpatialTransformer
from nets.discriminator import PatchDiscriminator
from nets.embedding import TimestepEmbedding
from nets.perceptual import VGG16Distance
from nets.vae import AutoencoderKL, VAEConfig
from train.memory.cuda_rules import FLOAT32, FLOAT32_RESULT, LOWER, PROMOTE, CudaRules

LATER = {"rms_norm"}  # joined the lists between torch 2.10 and 2.13; no model here has it
HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"


def macro(name: str) -> set[str]:
    """The operators that a list of the header that came with this torch names."""
    body = re.search(rf"#define {name}\(_\)((?:[^\n]*\\\n)*[^\n]*)", HEADER.read_text()).group(1)
    return set(re.findall(r"\b_\((\w+)", body))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("AT_FORALL_LOWER_PRECISION_FP", LOWER),
        ("AT_FORALL_FP32", FLOAT32),
        ("AT_FORALL_FP32_SET_OPT_DTYPE", FLOAT32_RESULT - {"norm"}),
        ("AT_FORALL_PROMOTE", PROMOTE),
    ],
)
def test_lists_are_those_of_the_header_that_came_with_torch(name, ours):
    assert macro(name) | LATER == ours | LATER


def test_lists_name_every_operator_registered_for_cuda_autocast():
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    names = {op.removeprefix("aten::").split(".")[0] for op in registered}
    # What autocast refuses, and what is registered only in a build with cuDNN.
    beyond = {"binary_cross_entropy", "cudnn_convolution", "cudnn_convolution_transpose", "_cudnn_rnn"}
    assert (names - beyond) | LATER == LOWER | FLOAT32 | FLOAT32_RESULT | PROMOTE


class Recorded(TorchDispatchMode):
    """The operators that run, with the shapes and dtypes of their results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return result
        results = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        shapes = [(tuple(t.shape), t.dtype) for t in results]
        self.calls.append((func.overloadpacket.__name__, shapes))
        return result


def transformer(tokens: int, linear_projection: bool):
    return lambda: SpatialTransformer(32, 2, 16, 8, linear_projection), lambda model, empty: model(
        empty(2, 32, 8, 8), empty(2, tokens, 16)
    )


def vae(model, empty):
    posterior = model.encode(empty(2, 3, 16, 16))
    return model.decode(posterior.mean + posterior.std), posterior.kl()


MODELS = {
    # Of the UNet what the VAE has not: as a whole it indexes with None, which fake "cuda" tensors cannot do here.
    "transformer": transformer(1, True),
    "transformer-tokens": transformer(3, False),
    "time": (lambda: TimestepEmbedding(32, 64), lambda model, empty: model(empty(2, 32))),
    "vae": (lambda: AutoencoderKL(VAEConfig((32, 32), norm_groups=8)), vae),
    "discriminator": (lambda: PatchDiscriminator(3), lambda model, empty: model(empty(2, 3, 64, 64))),
    "perceptual": (VGG16Distance, lambda model, empty: model(empty(2, 3, 32, 32), empty(2, 3, 32, 32))),
}


def torchs_own(build, run, dtype: torch.dtype) -> list:
    with torch.device("meta"):
        model = build().requires_grad_(False)
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({k: t if t is None else torch.empty(t.shape, device="cuda") for k, t in tensors.items()})
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        torch.autocast_increment_nesting()
        try:
            with Recorded() as recorded:
                run(model, lambda *shape: torch.empty(shape, device="cuda"))
        finally:
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)
    return recorded.calls


def emulated(build, run, dtype: torch.dtype) -> list:
    with torch.device("meta"):
        model = build().requires_grad_(False)
    emulation = CudaRules("math")
    with torch.no_grad(), Recorded() as recorded, emulation, emulation.autocast(dtype):
        run(model, lambda *shape: torch.empty(shape, device="meta"))
    return recorded.calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_emulation_runs_the_operators_that_torch_runs(name, dtype):
    ours, theirs = emulated(*MODELS[name], dtype), torchs_own(*MODELS[name], dtype)
    assert ours == theirs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weight_copies_are_kept_until_the_outer_autocast_ends(precision):
    layer = torch.nn.Linear(4, 4, device="meta")
    x, emulation = torch.empty(2, 4, device="meta"), CudaRules()
    with emulation, emulation.autocast(torch.bfloat16 if precision == "bf16" else None):
        with emulation.autocast(emulation.precision):
            layer(x)
            layer(x)
        assert len(emulation.half_copies) == (2 if precision == "bf16" else 0)
    assert not emulation.half_copies
