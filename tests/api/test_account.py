"""The account of memory from Python: what the command prints and draws, as values."""

import json

import pytest
import torch

from train import memcheck as command
from train.api import UserError, memcheck

DEMO = ["--config", "configs/demo.yaml", "--gpu", "T4"]


def test_the_account_holds_what_the_command_prints_and_draws(capsys, tmp_path):
    found = memcheck("configs/demo.yaml", gpu="T4")
    command.main([*DEMO, "--pictures", str(tmp_path)])
    assert capsys.readouterr().out == f"{found}\n\n"
    assert {path.stem for path in tmp_path.iterdir()} == found.pictures.keys()
    command.main([*DEMO, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.data))
    (row,) = found.data["cards"]
    assert found.largest_batch == {"T4": row["largest_batch"]}


def test_changes_and_arguments_are_those_of_the_run():
    found = memcheck("configs/demo.yaml", {"ldm_training.batch_size": 3}, users=7, gpu="T4")
    scenario = found.scenario
    assert (scenario.micro_batch, scenario.users, scenario.stage) == (3, 7, "ldm")
    assert memcheck("configs/demo.yaml", {"user_encoder.num_users": 5}, users=7).scenario.users == 5


def test_an_account_leaves_torch_with_as_many_threads_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert memcheck("configs/demo.yaml", stage="sample", gpu="T4").largest_batch["T4"] > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stage": "train"}, "stage train: must be"), ({"users": 0}, "users 0: must be at least 1"),
        ({"gpu": "T44"}, "gpu T44: not a known card .did you mean T4"), ({"gpu": ""}, "gpu : not a known card"),
        ({"ranks": 2, "stage": "sample"}, "ranks is of the trainings"),
        ({"changes": {"data.resolution": "wide"}}, "resolution='wide': data.resolution must be a whole number"),
    ],
)  # fmt: skip
def test_what_no_account_can_be_made_of_is_a_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        memcheck("configs/demo.yaml", **arguments)
