"""A thread that has to wait for a core waits, as far as the system says so."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, time, torch
from train.base.cores import Waiting
torch.set_num_threads(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
waiting, end = Waiting(), time.monotonic() + 0.5
others = [os.fork() for _ in range(3)]
if 0 in others:
    while time.monotonic() < end: pass
    os._exit(0)
while time.monotonic() < end: pass
print(waiting.share())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the system does not say")
def test_the_share_of_waiting_is_that_of_a_core_shared_by_four():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    assert float(said) > 0.5
