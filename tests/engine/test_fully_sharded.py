"""FSDP2 takes the step that one process takes, of a UNet with the levels of `sd`, and keeps a share of the weights.

`python -m tests.fully_sharded` does the same with `sd` itself; docs/scale.md has what that took.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.base.test_processes import TORCHRUN, free_port

ROOT = Path(__file__).parents[2]
SMALL = "{channels: [8, 16, 32, 32], cross_attention_dim: 12, num_heads: 2, norm_groups: 4, layers_per_block: 1}"
BOTH = """
import json, sys
from tests.float64 import float64
from tests.fully_sharded import alone, divided
from train.base.processes import joined
from train.config.schema import Config

config = Config.of(sys.argv[1], {"unet": sys.argv[2]}).unet
with float64(), joined():
    of_one = {kind: {name: x.clone() for name, x in tensors.items()} for kind, tensors in alone(config, 8)}
    print(json.dumps(divided(config, 8, of_one)))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    common = os.environ | TORCHRUN | {"MASTER_PORT": free_port(), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, str(ROOT / "configs/sd.yaml"), SMALL], stdout=subprocess.PIPE, text=True,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return json.loads(said[0])


def test_fsdp_has_the_gradients_and_the_step_of_one_process(found):
    assert found["gradient"] < 1e-12
    assert found["step"] < 1e-6  # AdamW's first step makes as much of a gradient that is rounding as of another


def test_fsdp_keeps_half_the_weights_in_each_of_two_processes(found):
    assert sum(found["kept"]) == found["whole"]
    assert max(found["kept"]) < 0.51 * found["whole"]
    assert found["layer"] < 0.2 * found["whole"]  # what is whole at a time
