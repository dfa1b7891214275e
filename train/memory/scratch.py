"""Upper bounds of what CUDA kernels take and give back inside an operator, which no trace of operators can see.

A convolution may copy its input, its weights and its output into another layout, each once (cuDNN between NCHW and
NHWC; in the backward pass it copies the gradient of the output, and the input or its gradient). Attention may sum its
output in float32. Its backward pass copies the gradient that it is given, multiplies it with the output in float32, and
sums the gradient of the queries in float32 and in whole blocks, those of keys and values only if heads are wide
(attention_backward.cu, kernel_backward.h, flash_api.cpp). What other operators take inside is small: statistics, and
sums of a few blocks.

Shapes: B batch, h heads, N positions, d components of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

POSITIONS = 128  # in a block of attention, at most
NARROW, WIDE = 64, 128  # components in a block; wider heads are of several blocks

ops = torch.ops.aten


def scratch_of(operator, args: tuple, result) -> list[int]:
    """Bytes of each tensor that this operator may keep until it returns."""
    bound = BOUNDS.get(operator)
    return bound(args, result) if bound else []


def _convolution(args: tuple, result: Tensor) -> list[int]:
    return [t.nbytes for t in (args[0], args[1], result)]


def _convolution_backward(args: tuple, result: tuple) -> list[int]:
    return [t.nbytes for t in args[:3]]  # the gradient of the output, the input, the weights


def _attention(args: tuple, result: tuple) -> list[int]:
    return [4 * result[0].numel()]


def _attention_backward(args: tuple, result: tuple) -> list[int]:
    gradient, queries = args[:2]  # (B, h, N, d)
    batch, heads, positions, width = queries.shape
    block = NARROW if width <= NARROW else WIDE
    in_blocks = batch * heads * _rounded(positions, POSITIONS) * _rounded(width, block)
    products = 3 * gradient.numel()  # the gradient, the output, and one with the other
    sums = 3 * in_blocks if width > WIDE else in_blocks
    return [gradient.nbytes, 4 * max(products, sums)]


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


BOUNDS: dict[object, Callable[[tuple, object], list[int]]] = {
    ops.convolution.default: _convolution,
    ops.convolution_backward.default: _convolution_backward,
    ops._scaled_dot_product_efficient_attention.default: _attention,
    ops._scaled_dot_product_flash_attention.default: _attention,
    ops._scaled_dot_product_efficient_attention_backward.default: _attention_backward,
    ops._scaled_dot_product_flash_attention_backward.default: _attention_backward,
}
