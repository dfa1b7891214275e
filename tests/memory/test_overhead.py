"""What takes memory beside the tensors."""

from tests.memory.presets import config_of
from train.base.units import MiB
from train.memory.fit import account_of
from train.memory.gpus import GPU
from train.memory.overhead import cublas
from train.memory.scenario import Scenario


def test_training_has_two_cublas_workspaces_and_sampling_has_one():
    old, hopper = GPU("old", 16.0, (7, 5), ""), GPU("new", 80.0, (9, 0), "")
    training, sampling = (account_of(Scenario(config_of("demo"), stage)) for stage in ("ldm", "sample"))
    assert [cublas(old, account).bytes for account in (training, sampling)] == [2 * 8_519_680, 8_519_680]
    assert [cublas(hopper, account).bytes for account in (training, sampling)] == [64 * MiB, 32 * MiB]
