"""GPUs by their names."""

import re

import pytest

from train.base.errors import UserError
from train.memory.gpus import GPUS, gpu_named


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("A100", "gpu A100: which of A100-40GB, A100-80GB?"), ("rtx", "gpu rtx: which of RTX3060, RTX4090?"),
     ("", "gpu : not a known card: T4, P100,"), ("RTX4091", "not a known card (did you mean RTX4090?): T4, P100,")],
)  # fmt: skip
def test_a_name_that_no_gpu_or_several_have_is_refused(name, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        gpu_named(name)


def test_a_gpu_is_known_by_its_name_or_a_part_no_other_has():
    assert [gpu_named(gpu.name) for gpu in GPUS] == list(GPUS)
    assert gpu_named("v100 32").name == "V100-32GB"
    assert gpu_named("rtx30").name == "RTX3060"
