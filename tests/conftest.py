"""One thread: the models here are so small that threads cost more than they give, and on a busy machine
fifty times more. OMP_NUM_THREADS asks for more, as `make test-portable` does; processes that tests start follow it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(THREADS)


def pytest_runtest_setup() -> None:
    torch.set_num_threads(THREADS)  # memcheck, in a test before, may have changed it for its process
