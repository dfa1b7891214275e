"""The linear layer. On a CPU it is oneDNN that multiplies, as for convolutions, and not MKL.

MKL is torch's choice for float32. On processors that Intel has not made, it takes twice the time.

Shapes: ... any, C_in and C_out channels, N rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # under its old name; not in every build of torch
CHOICE = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and ONEDNN is not None


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., C_in) to (..., C_out), as F.linear."""
    if has_torch_function((x, weight)):
        return handle_torch_function(linear, (x, weight), x, weight, bias)
    here = CHOICE and x.type() == "torch.FloatTensor" and x.numel() > 0  # the CPU's, in float32
    if not here or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return _OneDNN.apply(x, weight, bias)


class _OneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # N C_out
        grad_x = linear(rows, weight.t()).view(x.shape) if of_x else None
        return grad_x, _product(rows, x.flatten(0, -2)) if of_weight else None, rows.sum(0) if of_bias else None


def _product(rows: Tensor, x: Tensor) -> Tensor:
    """The sum over N of (N, C_out) times (N, C_in): (C_out, C_in)."""
    if rows.numel() <= x.numel() + rows.shape[1] * x.shape[1]:  # oneDNN copies what it finds transposed: as little
        return linear(rows.t(), x.t())
    return linear(x.t(), rows.t()).t()
