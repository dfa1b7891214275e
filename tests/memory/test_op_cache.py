"""What a trace knows of operators is what torch's own meta operators say."""

import pytest
import torch

from train.memory.op_cache import KNOWN, ShapeCache

aten = torch.ops.aten


def described(result) -> list:
    return [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in result]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 8, 4, 4), (1, 8, 5, 3), (3, 8)])
@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, True], [True, False, False]])
def test_what_is_known_of_group_norm_is_what_torch_finds(size, dtype, wanted):
    x, statistic = torch.empty(size, dtype=dtype, device="meta"), torch.empty(size[0], 4, dtype=dtype, device="meta")
    weight = torch.empty(8, dtype=dtype, device="meta")
    sizes = (size[0], 8, x.numel() // size[0] // 8, 4)
    for operator, args in (
        (aten.native_group_norm.default, (x, weight, weight, *sizes, 1e-5)),
        (aten.native_group_norm_backward.default, (x, x, statistic, statistic, weight, *sizes, wanted)),
    ):
        assert operator in KNOWN
        assert described(ShapeCache().call(operator, args, {})[0]) == described(operator(*args))


def test_a_number_on_the_cpu_is_read_anew_each_time():
    """Else, with zero terminal SNR, the sampler would divide by the first noise level's alpha, which is 0."""
    read, cache = aten._local_scalar_dense.default, ShapeCache()
    assert [cache.call(read, (torch.tensor(number),), {})[0] for number in (0.0, 2.0)] == [0.0, 2.0]
