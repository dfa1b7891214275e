"""CUDA behaviour that the meta device lacks: autocast, the choice of attention kernel, reading a number from a tensor.

Autocast casts the floating-point arguments of an operator before autograd sees them, by a list of operator names,
and keeps its copies of weights until the outermost `autocast` ends, so that a weight that is used twice is cast
once. torch has these lists for CUDA tensors only, so they are repeated here; a test compares them, and their effect
on every model of this project, with torch's own.

Attention is one operator with several kernels, which differ in what they keep for the backward pass. A GPU uses the
last of these that supports the operands:

    math        keeps the softmax, (B, h, N, L): quadratic in the grid
    efficient   keeps one number per query (Rabe and Staats 2021): every GPU since Pascal; bf16 from Ampere on
    flash       keeps the same (Dao 2023): Ampere or later, half precision, heads of at most 256 components
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

AttentionKernel = Literal["math", "efficient", "flash"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# From torch/include/ATen/autocast_mode.h: AT_FORALL_LOWER_PRECISION_FP, ..._FP32, ..._FP32_SET_OPT_DTYPE with `norm`,
# ..._PROMOTE.
LOWER = _names(
    """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution
    prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
    linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention"""
)
FLOAT32 = _names(
    """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm
    native_layer_norm rms_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss
    mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
    binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
    _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
    upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa"""
)
FLOAT32_RESULT = _names("prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm")
PROMOTE = _names("addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add")
# Python functions and methods that call one of these operators.
ALIASES = {
    "interpolate": "upsample_nearest2d", "square": "pow", "__pow__": "pow", "__rpow__": "pow", "__matmul__": "matmul",
}  # fmt: skip
CAST = LOWER | FLOAT32 | FLOAT32_RESULT | PROMOTE
READS = {"item", "__float__"}  # they read a number, which a meta tensor does not have
SPECIAL = {"backward", "grad", "cpu", "_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"}


class CudaRules(TorchFunctionMode):
    """While entered, operators on meta tensors behave as on a CUDA GPU."""

    def __init__(self, attention: AttentionKernel = "efficient"):
        super().__init__()
        self.attention = attention  # the best kernel that the GPU has: "flash" from Ampere on, "efficient" before
        self.precision: torch.dtype | None = None
        self.backward = False  # whether a backward pass is running
        self.half_copies: dict[int, Tensor] = {}
        self.on_half_copy: Callable[[Tensor, Tensor], None] = lambda weight, copy: None
        self._nesting = 0

    @contextmanager
    def autocast(self, precision: torch.dtype | None) -> Iterator[None]:
        """Like torch.autocast("cuda", precision); None disables it."""
        outer, self.precision = self.precision, precision
        self._nesting += 1
        try:
            yield
        finally:
            self.precision = outer
            self._nesting -= 1
            if not self._nesting:
                self.half_copies.clear()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READS and args[0].is_meta:
            return 0.0
        if name in SPECIAL:
            return self._special(name, func, args, kwargs)
        if self.precision is not None:
            name = ALIASES.get(name, name)
            if name in CAST:
                func, args, kwargs = self._cast(name, func, args, kwargs)
        if name == "scaled_dot_product_attention":
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _special(self, name: str, func, args: tuple, kwargs: dict):
        if name in ("backward", "grad"):
            self.backward = True
            try:
                return func(*args, **kwargs)
            finally:
                self.backward = False
        if name == "cpu" and args[0].is_meta:
            return torch.empty_like(args[0], device="cpu")
        if name == "_amp_foreach_non_finite_check_and_unscale_" and args[0][0].is_meta:
            return None
        if name == "_amp_update_scale_" and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)

    def _cast(self, name: str, func, args: tuple, kwargs: dict) -> tuple:
        if name in LOWER:
            dtype = self.precision
        elif name in FLOAT32:
            dtype = torch.float32
        elif name in FLOAT32_RESULT:
            if _castable(args[0]) and args[0].dtype != torch.float32 and kwargs.get("dtype") is None:
                kwargs = {**kwargs, "dtype": torch.float32}
            return func, args, kwargs
        else:
            dtypes = {t.dtype for t in (*args, *kwargs.values()) if _castable(t)}
            dtype = torch.float32 if torch.float32 in dtypes else self.precision
        kwargs = {k: self._to(v, dtype) for k, v in reversed(kwargs.items())}
        args = tuple(self._to(a, dtype) for a in reversed(args))[::-1]  # torch casts the last argument first
        return func, args, kwargs

    def _to(self, value, dtype: torch.dtype):
        if isinstance(value, list | tuple):
            return [self._to(v, dtype) for v in value]
        if not _castable(value) or value.dtype == dtype:
            return value
        is_weight = value.requires_grad and value.is_leaf and not value._is_view()
        if dtype != self.precision or value.dtype != torch.float32 or not is_weight:
            return value.to(dtype)
        if id(value) not in self.half_copies:
            with torch.enable_grad():
                copy = value.to(dtype)
            self.half_copies[id(value)] = copy
            self.on_half_copy(value, copy)
        return self.half_copies[id(value)]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v for q (B, h, N, d), k and v (B, h, L, d), by the kernel that the GPU would use."""
        attention, ops, width = self.attention, torch.ops.aten, q.shape[-1]
        if attention == "flash" and (q.dtype == torch.float32 or width > 256):
            unit = 4 if q.dtype == torch.float32 else 8  # GPU.head_alignment of a GPU that has flash
            attention = "math" if width % unit else "efficient"
        elif attention == "efficient" and q.dtype == torch.bfloat16:
            attention = "math"
        if attention == "flash":
            if width % 8:  # flash pads the heads to a multiple of 8 (pad_last_dim, attention.cpp)
                q, k, v = (F.pad(x, (0, -width % 8)) for x in (q, k, v))
            return ops._scaled_dot_product_flash_attention(q, k, v, scale=width**-0.5)[0][..., :width]
        if attention == "efficient":
            keep = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
            return ops._scaled_dot_product_efficient_attention(q, k, v, None, keep)[0]
        return ops._scaled_dot_product_attention_math(q, k, v)[0]


def _castable(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
