"""Questions on all cores, and where they must not be."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.base.workers import on_all_cores

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks here")


@contextmanager
def thread_named(name: str) -> Iterator[None]:
    done, named = threading.Event(), threading.Event()

    def wait() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        named.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    named.wait()
    yield
    done.set()
    thread.join()


def test_results_come_in_the_order_of_the_tasks():
    assert list(on_all_cores([lambda i=i: i * i for i in range(20)])) == [i * i for i in range(20)]


@LINUX
def test_beside_autograd_threads_tasks_stay_in_this_process():
    with thread_named("pt_autograd_0"):
        assert list(on_all_cores([os.getpid] * 3)) == [os.getpid()] * 3


@LINUX
def test_beside_other_threads_tasks_go_to_other_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with thread_named("worker"):
        assert os.getpid() not in list(on_all_cores([os.getpid] * 3))


def test_forks_of_a_process_with_threads_of_openmp_do_compute():
    """As where Python has trained something before: a fork has none of the threads that OpenMP counts on."""
    program = """
import torch
from train.base.workers import on_all_cores
torch.set_num_threads(2)
large = torch.ones(2000, 2000)
large.exp().sum()
print(sum(on_all_cores([lambda: float(large.mean())] * 4)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "4.0\n"
