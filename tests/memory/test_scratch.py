"""What kernels may take inside: bounds, in a trace and in no sum of tensors."""

import torch
from torch import nn
from torch.nn import functional as F

from train.memory.account import Account
from train.memory.cuda_rules import CudaRules
from train.memory.trace import SCRATCH, Trace

HALF = torch.float16


def account_of(function, *operands) -> Account:
    with Trace({}, CudaRules()) as trace:
        function(*operands)
    return Account(trace)


def scratch(account: Account, operator: str) -> list[int]:
    return [s.bytes for s in account.storages if s.category == SCRATCH and s.operator == operator]


def test_a_convolution_may_copy_each_operand_once():
    x = torch.empty(2, 4, 8, 8, device="meta", requires_grad=True)
    layer = nn.Conv2d(4, 6, 3, padding=1, device="meta")
    account = account_of(lambda: layer(x).sum().backward())
    sizes = {x.nbytes, layer.weight.nbytes, 2 * 6 * 8 * 8 * 4}
    assert set(scratch(account, "convolution")) == set(scratch(account, "convolution_backward")) == sizes
    assert account.scratch() == sum(sizes)


def test_attention_may_sum_gradients_in_float32_by_blocks():
    def attend(width: int, dtype: torch.dtype) -> list[int]:
        q = torch.empty(2, 8, 256, width, device="meta", dtype=dtype, requires_grad=True)
        account = account_of(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
        return scratch(account, "_scaled_dot_product_efficient_attention_backward")

    positions = 2 * 8 * 256
    assert attend(16, HALF) == [positions * 16 * 2, positions * 64 * 4]  # the queries', in blocks of 64
    assert attend(64, HALF) == [positions * 64 * 2, 3 * positions * 64 * 4]  # or products with the output
    assert attend(512, HALF) == [positions * 512 * 2, 3 * positions * 512 * 4]


def test_scratch_is_gone_with_its_operator_and_in_no_sum():
    x = torch.empty(2, 4, 8, 8, device="meta")
    account = account_of(nn.Conv2d(4, 4, 1, bias=False, device="meta"), x)
    assert (account.died - account.born)[account.is_scratch].max() <= 5  # others' births and deaths
    assert account.peak().bytes == account.live().max() == x.nbytes
