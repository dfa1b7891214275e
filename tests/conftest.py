"""One thread: the models here are so small that threads cost more than they give, and on a busy machine
fifty times more. OMP_NUM_THREADS asks for more, as `make test-portable` does; processes that tests start follow it.
"""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from train.judge import evaluation, network

THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(THREADS)
STORES = tempfile.TemporaryDirectory(prefix="stores-")  # of decoded images, which go when the tests end
os.environ["LDM_STORE"] = STORES.name


def pytest_runtest_setup() -> None:
    torch.set_num_threads(THREADS)  # memcheck, in a test before, may have changed it for its process


@pytest.fixture
def short_judgement(monkeypatch) -> None:
    """Few steps and seeds, for tests of what is around a judgement."""
    monkeypatch.setattr(network, "LEAST_STEPS", 8)
    monkeypatch.setattr(network, "MOST_STEPS", 8)
    monkeypatch.setattr(evaluation, "SEEDS", 2)
    monkeypatch.setattr(evaluation, "QUICK_SEEDS", 2)
