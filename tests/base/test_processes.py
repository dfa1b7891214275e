"""One process is the first of one, whatever the group says while the others are left out."""

import pytest
import torch.distributed as dist

from train.base import processes
from train.base.errors import UserError
from train.base.processes import gather, joined, leaving_others_out, on_main, rank, world_size


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
