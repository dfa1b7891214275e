"""A run in two processes is the run in one: the same weights, one writer, one sentence, no hang.

tests/engine/parallel_worker.py runs under a real torchrun, on the CPU with gloo: once for all laws, once to die.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine import parallel_worker as worker
from tests.float64 import float64
from tests.tiny import make_images
from train import ldm, vae
from train.config.sections import OptimConfig
from train.engine.optim import make_adamw
from train.engine.parallel import share
from train.runs import model_folder
from train.runs.checkpoint import load_latest

ROOT = Path(__file__).parents[2]


def torchrun(folder: Path, what: str) -> subprocess.CompletedProcess:
    """Two processes of the worker, of one thread each: more would wait for a core. A hang fails the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, "-m", "tests.engine.parallel_worker", what, str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs in one process, which those in two are compared with."""
    folder = tmp_path_factory.mktemp("parallel") / "runs"
    make_images(folder / "data")
    vae.main(worker.flags(folder, "v"))
    worker.adversarial_run(folder, "adversary_1")
    ldm.main(worker.ldm_flags(folder, "ldm_1"))
    worker.stopped_run(worker.ldm_flags(folder, "from_1_to_2"))
    return folder


@pytest.fixture(scope="module")
def two(runs) -> subprocess.CompletedProcess:
    done = torchrun(runs, "laws")
    assert (runs.parent / "rank1.pt").exists(), done.stderr
    return done


@pytest.fixture(scope="module")
def ranks(runs, two) -> list[dict]:
    """What each of the two processes found."""
    return [torch.load(runs.parent / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return model_folder.load(folder).state_dict()


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """They differ by 1e-9 of the length of all the weights together, in float64; by 1e-5 in float32.

    A few steps move them by some percent of it, and a wrong share of a window would change that by a tenth. Sums in
    float32 change it by 1e-5 of itself.
    """
    assert ours.keys() == theirs.keys()
    bound = 1e-9 if next(iter(ours.values())).dtype == torch.float64 else 1e-5
    distance = sum((ours[n] - theirs[n]).double().square().sum() for n in ours).sqrt()
    assert distance <= bound * sum(theirs[n].double().square().sum() for n in ours).sqrt()


# ---- the same weights


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_shares_make_up_the_batch_and_differ_by_at_most_one_row(monkeypatch, batch, processes):
    monkeypatch.setattr("train.engine.parallel.world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr("train.engine.parallel.rank", lambda rank=rank: rank)
        shares.append(share(batch))
    assert [row for rows in shares for row in rows] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) > 0


@pytest.mark.parametrize(
    ("law", "arguments"),
    [
        ("uneven", {"samples": 20, "batch": 7, "micro_batch": 2}),
        ("tokens", {"samples": 20, "batch": 7, "micro_batch": 2, "tokens": 2}),
        ("empty", {"samples": 5, "batch": 4, "micro_batch": 4}),
        ("sharded", {"samples": 20, "batch": 7, "micro_batch": 2}),
        ("out_of_memory", {"samples": 20, "batch": 7, "micro_batch": 2}),
    ],
    ids=["uneven shares", "two tokens", "an empty share", "sharded state and checkpointing",
         "memory that runs out in one"],
)
def test_two_processes_have_the_weights_losses_and_norms_of_one(ranks, law, arguments):
    alone = worker.learn(**arguments)
    for found in ranks:
        assert_close(found[law]["weights"], alone["weights"])
        assert found[law]["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        assert found[law]["norms"] == pytest.approx(alone["norms"], rel=1e-9)
    start = worker.learn(**arguments, steps=0)["weights"]
    assert any(not torch.equal(start[name], weight) for name, weight in alone["weights"].items())


def test_in_two_processes_lean_activations_change_no_bit(ranks):
    for found in ranks:
        lean, kept = found["tokens"], found["tokens, all kept"]
        assert all(torch.equal(weight, kept["weights"][name]) for name, weight in lean["weights"].items())
        assert (lean["losses"], lean["norms"]) == (kept["losses"], kept["norms"])


def test_processes_never_drift_apart_by_a_bit(ranks):
    assert ranks[0]["hash"] == ranks[1]["hash"]


@pytest.mark.parametrize(
    ("one", "two_", "part"),
    [("ldm_1", "ldm_2", "unet"), ("ldm_1", "ldm_2", "condition_encoder"), ("adversary_1", "adversary_2", "")],
    ids=["unet", "user encoder", "vae with adversary"],
)
def test_a_command_under_torchrun_ends_in_the_same_weights(runs, two, one, two_, part):
    assert_close(weights(runs / two_ / "final_model" / part), weights(runs / one / "final_model" / part))


def test_ddp_changes_neither_discriminator_nor_adaptive_weight(runs, two):
    names = ("adversary_1", "adversary_2")
    alone, together = (load_latest(runs / name / "checkpoints").state["adversary"] for name in names)
    assert_close(together["discriminator"], alone["discriminator"])
    assert alone["adaptive_weight"] > 0
    assert together["adaptive_weight"] == pytest.approx(alone["adaptive_weight"], rel=1e-9)


# ---- another number of processes


def test_a_run_of_one_process_goes_on_in_two(runs, two):
    steps = [path.name for path in sorted((runs / "from_1_to_2/checkpoints").iterdir())]
    assert steps == ["step_00000004", "step_00000006_best"]
    assert_close(weights(runs / "from_1_to_2/final_model/unet"), weights(runs / "ldm_1/final_model/unet"))


def test_a_sharded_run_of_two_processes_resumes_in_one(runs, two):
    assert not (runs / "from_2_to_1/final_model").exists()
    ldm.main(worker.ldm_flags(runs, "from_2_to_1"))
    assert_close(weights(runs / "from_2_to_1/final_model/unet"), weights(runs / "ldm_1/final_model/unet"))


@float64()
def test_sharded_state_is_divided_in_memory_but_saved_whole(ranks):
    alone = worker.Denoising(14, 7, 7)
    alone.step(0)
    numbers = 2 * sum(p.numel() for p in alone.model.trained_parameters())  # Adam's two moments
    shares = [found["sharding"]["own"] for found in ranks]
    assert sum(shares) == numbers
    assert max(shares) < 0.6 * numbers
    expected, saved = alone.learner.optimizer.state_dict(), ranks[0]["sharding"]["saved"]
    assert saved["state"].keys() == expected["state"].keys()
    for index, state in expected["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(saved["state"][index][name], value, rtol=1e-9, atol=1e-12)
    make_adamw(alone.model.trained_parameters(), OptimConfig()).load_state_dict(saved)


def test_a_signal_to_any_process_stops_all_after_the_same_step(runs, ranks):
    (said,) = {found["stopped"] for found in ranks}
    assert said.startswith("LDM: SIGTERM: saved after step 2 of 6; start again to go on; samples in ")
    saved = sorted(path.name for path in (runs / "signalled/checkpoints").iterdir())
    assert saved == ["step_00000000", "step_00000002"]


# ---- latents


def test_processes_divide_the_encoding_and_store_what_one_would(runs, ranks):
    alone = worker.encoded(runs / "encoded_1")
    whole, stopped, rest = zip(*(found["encoded"] for found in ranks), strict=True)
    assert (alone["encoded"], [found["encoded"] for found in whole]) == (20, [12, 8])
    for found in (*whole, *rest):
        assert torch.equal(found["moments"], alone["moments"])
    stores = [next((runs / name).glob("*/rows.raw")).read_bytes() for name in ("encoded_1", "encoded")]
    assert stores[0] == stores[1]
    # The signal comes in the first's second batch, so that of the first round is kept, and of the second none.
    assert {found["said"] for found in stopped} == {"LDM: SIGTERM: goes on"}
    assert sum(found["encoded"] for found in rest) == 20 - 8


# ---- communication


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_last_micro_batch_of_a_batch_communicates(ranks, rank):
    once = ["c10d::allreduce_", "c10d::allgather_", "c10d::allgather_"]  # gradients; losses, to be logged
    found = ranks[rank]["communication"]
    assert found[1] == ["micro-batch"] * (4, 3)[rank] + once  # a batch of 7
    assert found[7] == ["micro-batch", *once]


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_of_all_micro_batches_share_the_same_memory(ranks, rank):
    first, *others = ranks[rank]["gradients"]
    assert first
    assert len(others) == 3 * 2 - 1  # a share of 4 or 3 rows, two by two
    assert all(other == first for other in others)


def test_gradients_lie_in_the_buckets_in_their_order_of_arrival(ranks):
    lie, come = ranks[0]["order"]
    assert lie == come


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("overflown", [0, 1], ids=["in the first", "in the second"])
def test_an_overflow_in_any_process_skips_the_step_in_all(ranks, rank, overflown):
    found = ranks[rank]["overflow"][overflown]
    assert found["taken"] == (False, True)
    assert found["unchanged"]
    assert found["scale"] == 512.0
    assert "are not both finite" in found["sentence"]


def test_values_are_gathered_in_the_order_of_ranks(ranks):
    assert [found["gathered"] for found in ranks] == [[0, 1], [0, 1]]


# ---- one writer, one voice, no hang


def test_only_the_first_process_writes(ranks):
    first, second = ("\n".join(found["written"]) for found in ranks)
    for name in ("config.yaml", "metrics.jsonl", "samples/.00000006.png", "latent_cache", "state.pt", "final_model"):
        assert name in first, name
    assert second == ""


def test_only_the_first_process_speaks(two):
    begun = "LDM: 3 users; 15 images to train with, 3 to validate with, 3 of other recordings held out; 6 steps on cpu"
    assert two.stdout.count(begun) == 6  # runs, two of which are refused before their first step
    assert two.stderr.count("LDM: going on after step 4 of 6") == 1
    assert two.stderr.count("LDM: 100%") == two.stderr.count("| 6/6 ") == 2


def test_bad_input_met_by_the_first_process_is_refused_in_all(ranks):
    assert [found["refusal"] for found in ranks] == ["process 0 says no"] * 2


def test_processes_that_do_not_begin_alike_are_refused_in_all(ranks):
    """They see other folders by the same names: other checkpoints, images or users; or they have another config."""
    ours, theirs = (found["apart"] for found in ranks)
    assert ours == theirs
    different = [
        r"step: 4 in process 0, 0 in process 1",
        r"hash of the data: \w{12} in process 0, \w{12} in process 1",
        r"users: ID2 in process 0, ID10 in process 1",
        r"config: save_interval: 4 in process 0, save_interval: 5 in process 1",
    ]
    for said, what in zip(ours, different, strict=True):
        assert re.search(rf"do not begin alike \({what}\); start all with the same command", said)


def test_full_memory_in_one_process_after_the_step_ends_all_with_one_sentence(two):
    assert two.returncode != 0
    said = "error: there is no memory for the optimizer's state or temporaries (CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
    assert two.stderr.count("error: ") == two.stderr.count(said) + two.stderr.count("CUDA error: ") == 2
    assert "[rank" not in two.stderr  # where torch would begin a process's traceback
    assert "exitcode  : 2" in two.stderr


def test_a_killed_process_ends_the_run_which_can_be_resumed(runs):
    done = torchrun(runs, "death")
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    assert "[rank" not in done.stderr
    saved = sorted(path.name for path in (runs / "dying/checkpoints").iterdir())
    assert saved == ["step_00000000", "step_00000004"]
    ldm.main(worker.ldm_flags(runs, "dying"))
    assert_close(weights(runs / "dying/final_model/unet"), weights(runs / "ldm_1/final_model/unet"))
