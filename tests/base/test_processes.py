"""One process is the first of one, whatever the group says while the others are left out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from train.base import processes
from train.base.errors import UserError
from train.base.processes import gather, joined, leaving_others_out, on_main, rank, world_size

ROOT = Path(__file__).parents[2]


@pytest.fixture
def second_of_three(monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(dist, name, lambda value=value: value)


def test_a_lone_process_is_the_first_of_one():
    assert (rank(), world_size(), gather("mine")) == (0, 1, ["mine"])


@pytest.mark.parametrize("error", [UserError("bad"), OSError("full"), ZeroDivisionError()])
def test_one_process_returns_what_it_makes_or_raises_its_error(error):
    def fail():
        raise error

    made = object()
    assert on_main(lambda: made) is made
    with pytest.raises(type(error)) as caught:
        on_main(fail)
    assert caught.value is error


def test_others_are_left_out_until_the_outermost_end(second_of_three):
    assert (rank(), world_size()) == (1, 3)
    with leaving_others_out():
        with leaving_others_out():
            assert (rank(), world_size()) == (0, 1)
        assert (rank(), world_size(), gather(7), on_main(lambda: 8)) == (0, 1, [7], 8)
    assert (rank(), world_size()) == (1, 3)


def test_an_error_within_brings_the_others_back(second_of_three):
    with pytest.raises(ZeroDivisionError), leaving_others_out():
        raise ZeroDivisionError
    assert (rank(), world_size()) == (1, 3)


@pytest.mark.parametrize("environment", [{}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}])
def test_a_run_of_one_process_joins_no_group(monkeypatch, environment):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.dist, "init_process_group", None)
    with joined():
        assert not dist.is_initialized()


TRAINS = """
import os
import torch
from train.base.processes import gather, joined

def threads():
    return len(os.listdir("/proc/self/task"))


before = threads()
with joined():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()
    gather(0)
    within = threads()
os.write(1, f"{before} {within} {threads()}\\n".encode())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """Where one did, one run in four that had trained something ended with a SIGABRT."""
    (tmp_path / "trains.py").write_text(TRAINS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "trains.py")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads = re.findall(r"^(\d+) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert len(threads) == 2
    assert all(int(within) > int(before) == int(after) for before, within, after in threads)
