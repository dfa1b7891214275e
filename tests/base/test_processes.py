"""One process is the first of one, whatever the group says while the others are left out."""

import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
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


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1"}  # fmt: skip


def free_port() -> str:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return str(there.getsockname()[1])


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the second of two processes, where nobody answers."""
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        monkeypatch.delenv(name)
    for name, value in {**TORCHRUN, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "MEETING", timedelta(milliseconds=300))
    return monkeypatch


@pytest.mark.parametrize("value", [None, "", "two", "-1"])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_half_of_torchruns_variables_are_refused_by_name(torchrun, name, value):
    torchrun.delenv(name) if value is None else torchrun.setenv(name, value)
    said = rf"^{name}: .* it is {value or 'not there'}; start with torchrun, or,"
    with pytest.raises(UserError, match=said), joined():
        pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_rank_beyond_the_last_is_refused(torchrun, name):
    torchrun.setenv(name, "2")
    with pytest.raises(UserError, match=f"^{name}=2: there are 2 processes, counted from 0"), joined():
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASTER_PORT", "70000"), ("MASTER_ADDR", ""), ("MASTER_ADDR", "no.such.host.invalid"),
     ("TORCHELASTIC_USE_AGENT_STORE", "True"), ("RANK", "0")],
)  # fmt: skip
def test_processes_that_do_not_find_each_other_end_in_a_sentence(torchrun, name, value):
    torchrun.setenv(name, value)
    said = r"^the processes of this run do not find each other at .*:\d+ \(.+\); start all"
    with pytest.raises(UserError, match=said), joined():
        pass


# What two processes say that join three times. First they train, while the first is long at an errand; then they are
# stopped; then one of them is long in a step.
PAIR = """
import os, sys, time
from datetime import timedelta
import torch
from train.base import processes

def threads():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0

processes.STEP = timedelta(seconds=2)
number, port = sys.argv[1:]
os.environ["RANK"] = os.environ["LOCAL_RANK"] = number
os.environ["MASTER_PORT"] = port
processes._meet()  # which lasts as long as the process
before = threads()
with processes.joined():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()
    processes.wait_for_all()
    processes.gather(0)
    processes.on_main(lambda: time.sleep(3))
    inner = processes.on_main(lambda: processes.on_main(lambda: "within"))
    within = threads()
    with processes.joined():
        inner += str(processes.gather(int(number)))
try:
    with processes.joined():
        raise processes.Stopped("later", 75)
except processes.Stopped as stopped:
    inner += str(stopped)
os.write(1, f"{before} {within} {threads()} {inner.replace(' ', '')} ".encode())
try:
    with processes.joined():
        time.sleep(4 * int(number))
        processes.gather(number)
except (processes.UserError, SystemExit) as error:
    os.write(1, str(error).encode())
"""


@pytest.fixture(scope="module")
def pair() -> list[str]:
    port = free_port()
    environment = os.environ | TORCHRUN | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", PAIR, str(number), port], stdout=subprocess.PIPE, env=environment)
        for number in range(2)
    ]
    return [process.communicate(timeout=300)[0].decode() for process in both]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_no_thread_of_the_group_outlives_it(pair):
    """Where one did, one run in four that had trained something ended with a SIGABRT."""
    for said in pair:
        before, within, after = map(int, said.split()[:3])
        assert within > before == after


def test_processes_join_again_and_errands_and_groups_may_be_nested(pair):
    assert [said.split()[3] for said in pair] == ["within[0,1]later"] * 2


def test_a_process_waits_for_an_errand_but_not_for_ever_for_a_step(pair):
    assert all(re.match(r"\d+ \d+ \d+ ", said) for said in pair)  # the errand took longer than a step may
    lost = r"the processes of this run have lost each other \(.*gloo.*\); started again, it goes on from its last"
    assert re.search(lost, pair[0])
