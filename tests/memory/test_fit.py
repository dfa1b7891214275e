"""What fits: linearity in the batch, the largest batch, the kernels of a GPU, and what is left."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.memory.presets import CHECKPOINTING, SMALL_GPU, config_of
from tests.tiny import tiny
from train.base.errors import UserError
from train.base.units import GiB, MiB
from train.memory import fit, step
from train.memory.account import Account
from train.memory.allocator import Replay, served
from train.memory.fit import (
    MOST_ELEMENTS,
    account_of,
    fits,
    fits_traced,
    growth_of,
    largest_batch,
    left,
    on_gpu,
    plan_micro_batch,
    room,
    room_within,
    runs,
    traced,
)
from train.memory.gpus import GPU, gpu_named
from train.memory.overhead import CONTEXT, fragmentation, overheads
from train.memory.scenario import Scenario

PASCAL = GPU("old", 16.0, (6, 0), "")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH = ("ldm_training.batch_size=30", "ldm_training.gradient_accumulation_steps=4")


def bytes_free_for(needed: int, account: Account, gpu: GPU = PASCAL) -> int:
    """The fewest free bytes of which so many are sure for tensors and kernels."""
    free = needed * 100 // 97
    while room_within(free, gpu, account) < needed:
        free += needed - room_within(free, gpu, account)
    return free


@CHECKPOINTING
@pytest.mark.parametrize("stage", ["ldm", "vae", "sample"])
def test_every_storage_is_linear_in_the_batch(stage, checkpointing):
    scenario = Scenario(config_of("light"), stage).with_training(gradient_checkpointing=checkpointing)
    for batch in (2, 5, 16):
        ours = scenario.with_micro_batch(batch)
        grown, itself = account_of(ours), traced(ours)
        for what in ("bytes", "born", "died"):
            assert np.array_equal(getattr(grown, what), getattr(itself, what))


@pytest.mark.parametrize("users", [33, 11 * 13])
def test_users_divisible_by_the_traced_batch_mislead_no_account(users):
    scenario = Scenario(config_of("light"), users=users, validates=False)
    assert account_of(scenario).bytes.tolist() == traced(scenario).bytes.tolist()


def test_norms_for_clipping_do_not_grow_with_the_batch():
    """A discriminator has 13 tensors, and images of 88 pixels have the account traced at batch 13."""
    config = config_of("adversarial", "data.resolution=88", "vae.channels=[32, 64, 64]", "vae.norm_groups=8")
    scenario = Scenario(config, "vae").with_micro_batch(2)
    assert account_of(scenario).bytes.tolist() == traced(scenario).bytes.tolist()
    assert {s.phase for s in traced(scenario).storages if s.operator == "stack"} == {"optimizer"}


@CHECKPOINTING
def test_the_largest_batch_fits_if_traced_and_the_next_does_not(checkpointing):
    scenario = Scenario(config_of("light")).with_training(gradient_checkpointing=checkpointing)
    largest = largest_batch(scenario, SMALL_GPU)
    assert fits_traced(scenario, largest, SMALL_GPU)
    assert not fits_traced(scenario, largest + 1, SMALL_GPU)


@pytest.mark.parametrize("gpu", ["P100", "T4"])
def test_a_16_gb_card_takes_300_images_of_medium_at_once_without_checkpointing(gpu):
    training = (scenario := Scenario(config_of("medium"))).training
    assert (training.mixed_precision, training.gradient_checkpointing) == ("fp16", False)
    card = gpu_named(gpu)
    assert fits(account_of(on_gpu(scenario.with_micro_batch(300), card)), card)


def test_a_gpu_that_holds_only_one_sample_has_largest_batch_one():
    scenario = Scenario(config_of("light"), "vae", validates=False)
    one, two = (served(account_of(scenario.with_micro_batch(batch)), with_scratch=True) for batch in (1, 2))
    assert one.peak_reserved < two.peak_allocated
    for limit, largest in ((two.peak_allocated - 1, 1), (one.peak_allocated - 1, 0)):
        memory = bytes_free_for(limit, account_of(scenario), SMALL_GPU) + CONTEXT.bytes
        assert largest_batch(scenario, replace(SMALL_GPU, memory=memory / GiB)) == largest


def test_attention_is_that_of_the_gpu():
    old, new = GPU("old", 16.0, (6, 0), ""), GPU("new", 16.0, (8, 0), "")
    half = Scenario(config_of("medium"))
    assert [on_gpu(half, gpu).attention for gpu in (old, new)] == ["efficient", "flash"]
    bf16 = half.with_training(mixed_precision="bf16")
    assert not runs(bf16, old)
    operators = {kind: {s.operator for s in account_of(replace(bf16, attention=kind, validates=False)).storages}
                 for kind in ("efficient", "flash")}  # fmt: skip
    assert "_scaled_dot_product_flash_attention" in operators["flash"]
    assert not any("efficient" in name for name in operators["efficient"])  # bf16 before Ampere: the plain one


def test_what_one_of_two_gpus_holds_is_what_its_training_plans():
    config = config_of("light", "ldm_training.batch_size=4", "ldm_training.gradient_accumulation_steps=1")
    one = Scenario(config, validates=False)
    half = one.of_one_process(2, 4)
    assert (half.training.batch_size, half.training.gradient_accumulation_steps) == (2, 1)
    gradients = account_of(half).of_category("gradients", account_of(half).forward_ends[0])
    assert gradients == 0  # of the first micro-batch; the second stands for all, since buckets keep them
    assert account_of(half).of_category("gradients", account_of(half).forward_ends[1]) > 0
    assert account_of(one).of_category("gradients", account_of(one).forward_ends[-1]) == 0


@pytest.mark.parametrize(("capability", "kernel"), [((6, 0), "efficient"), ((7, 5), "math"), ((8, 0), "flash")])
def test_the_kernel_for_heads_of_odd_width_depends_on_the_gpu(capability, kernel):
    narrow_heads = config_of("light", "unet.num_heads=16")
    assert on_gpu(Scenario(narrow_heads), GPU("x", 16.0, capability, "")).attention == kernel
    assert on_gpu(Scenario(config_of("light")), GPU("x", 16.0, (7, 5), "")).attention == "efficient"


def test_what_is_left_is_unreserved_memory_or_what_is_missing():
    account = account_of(Scenario(config_of("fp32"), validates=False))
    most = served(account, with_scratch=True).peak_reserved
    assert left(account, most + 5) == 5
    fitting = next(limit for limit in range(most - 2 * MiB, 0, -2 * MiB) if left(account, limit) < 0)
    assert fitting + 2 * MiB < most  # free segments given back have made room
    assert left(account, fitting) == fitting - most
    assert 0 <= left(account, fitting + 2 * MiB) < 20 * MiB


def test_a_table_divisible_by_the_traced_batch_does_not_grow():
    scenario = Scenario(config_of("demo", "schedule.num_train_timesteps=1100"), validates=False)
    assert account_of(scenario).bytes.tolist() == traced(scenario).bytes.tolist()


def test_flash_attention_pads_heads_that_are_no_multiple_of_8():
    config = config_of("medium", "unet.num_heads=32", "ldm_training.mixed_precision=bf16")
    account = account_of(Scenario(config, attention="flash", validates=False))
    kept = {s.operator for s, category in zip(account.storages, account.category, strict=True)
            if category == "activations" and "attn" in s.module}  # fmt: skip
    assert "constant_pad_nd" in kept


@CHECKPOINTING
def test_the_largest_batch_of_a_gpu_does_not_depend_on_others(checkpointing):
    scenario = Scenario(config_of("light")).with_training(gradient_checkpointing=checkpointing)
    gpus = [GPU(str(size), size, (7, 5), "") for size in (4.0, 5.5, 7.0)]
    together = [largest_batch(scenario, gpu) for gpu in gpus]
    for gpu, largest in zip(gpus, together, strict=True):
        fit._growth.cache_clear()
        assert largest_batch(scenario, gpu) == largest


def test_a_gpu_without_room_for_the_weights_fits_nothing():
    assert not fits(account_of(Scenario(config_of("light"))), GPU("tiny", 1.0, (7, 5), ""))


# ---- the margins of what fits


@CHECKPOINTING
def test_the_largest_batch_fits_whatever_else_the_allocator_served(checkpointing, monkeypatch):
    """More images at once than fit after two steps and a validation may not fit after more of them."""
    scenario = on_gpu(Scenario(config_of("light")).with_training(gradient_checkpointing=checkpointing), SMALL_GPU)
    largest = largest_batch(scenario, SMALL_GPU)
    take = step.Run._ldm

    def take_thrice(run: step.Run) -> None:
        for _ in range(3):
            take(run)

    monkeypatch.setattr(step.Run, "_ldm", take_thrice)
    account = traced(scenario.with_micro_batch(largest))
    assert len(account.forward_ends) == 9 * scenario.training.gradient_accumulation_steps
    whole = room(SMALL_GPU, account) + fragmentation(SMALL_GPU.bytes - CONTEXT.bytes)
    for with_scratch in (False, True):
        Replay(account, with_scratch).serve(limit=whole)


def test_what_the_card_takes_and_what_is_left_add_up_to_it():
    scenario, gpu = Scenario(config_of("demo")), gpu_named("T4")
    account = account_of(on_gpu(scenario, gpu))
    beside = sum(part.bytes or 0 for part in overheads(account, gpu, 1))
    assert account.peak().bytes + beside + left(account, room(gpu, account)) == gpu.bytes


def test_no_micro_batch_has_a_tensor_that_kernels_cannot_count():
    scenario = Scenario(config_of("demo"), validates=False)
    endless = GPU("endless", 1e9, (7, 5), "")
    largest = largest_batch(scenario, endless)
    growth = growth_of(on_gpu(scenario, endless))
    elements = [growth.traced.with_sizes(growth.sizes(size)).most_elements() for size in (largest, largest + 1)]
    assert elements[0] <= MOST_ELEMENTS < elements[1]
    assert not fits(growth.traced.with_sizes(growth.sizes(largest + 1)), endless)


# ---- the micro-batch that is planned before a run


def needed_free(account: Account) -> int:
    """Bytes that a Pascal must have free for this run, in whole segments."""
    limit = served(account, with_scratch=True).peak_reserved
    while left(account, limit - 2 * MiB) >= 0:
        limit -= 2 * MiB
    return bytes_free_for(limit, account)


@pytest.fixture(scope="module")
def needs() -> dict[int, tuple[int, int]]:
    """Bytes that tensors ask for, and that the GPU must have free, by the pieces that 120 images are cut into."""
    found = {}
    for pieces in (1, 2, 3, 4):
        scenario = Scenario(tiny(), "ldm", 3).with_training(
            batch_size=120 // pieces, gradient_accumulation_steps=pieces
        )
        account = account_of(scenario)
        found[pieces] = account.peak().bytes, needed_free(account)
    return found


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that a GPU, a Pascal unless it is told, has so many bytes free."""

    def pretend(free: int, capability=(6, 0)) -> None:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, 2 * free))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)

    return pretend


def test_on_the_cpu_the_config_decides(needs):
    assert plan_micro_batch(tiny(*BATCH), "ldm", 3, CPU) == 30
    assert plan_micro_batch(tiny(*BATCH, "ldm_training.auto_batch=true"), "ldm", 3, CPU) == 30


def test_a_run_that_fits_is_told_in_numbers(gpu, needs, capsys):
    gpu(2 * needs[4][1])
    assert plan_micro_batch(tiny(*BATCH), "ldm", 3, CUDA) == 30
    said = capsys.readouterr().err
    assert f"30 images at once need {needs[4][0] / GiB:.2f} GiB (predicted)" in said
    assert "may not fit" not in said


def test_a_run_whose_tensors_do_not_fit_is_refused_with_advice(gpu, needs):
    gpu(needs[4][0] - 1)
    with pytest.raises(UserError, match=r"need \d.*GiB \(predicted\), \d.*GiB are free; set auto_batch to true, or"):
        plan_micro_batch(tiny(*BATCH), "ldm", 3, CUDA)


def test_a_run_that_fits_only_without_rounding_is_warned_of(gpu, needs, capsys):
    requested, wanted = needs[4]
    assert requested < wanted
    gpu(requested)
    assert plan_micro_batch(tiny(*BATCH), "ldm", 3, CUDA) == 30
    assert "this may not fit" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", [1, 3, 4])
def test_auto_batch_plans_the_largest_micro_batch_that_fits(gpu, pieces):
    """Of a batch of 120 images: whatever the config says of the micro-batch, it is in as few pieces as can be."""
    plain = "ldm_training.lean_activations=false"  # else the allocator's blocks are larger than the difference
    needs = [needed_free(account_of(Scenario(tiny(plain), "ldm", 3).with_training(
        batch_size=120 // number, gradient_accumulation_steps=number))) for number in (1, 2, 3, 4)]  # fmt: skip
    assert sorted(set(needs), reverse=True) == needs
    gpu(needs[pieces - 1])
    assert plan_micro_batch(tiny(*BATCH, plain, "ldm_training.auto_batch=true"), "ldm", 3, CUDA) == 120 // pieces


def test_attention_is_planned_as_this_gpu_computes_it(gpu):
    bf16 = tiny("ldm_training.mixed_precision=bf16", "ldm_training.batch_size=30")
    scenario = Scenario(bf16, "ldm", 3)
    flash, plain = (account_of(replace(scenario, attention=kind)).peak().bytes for kind in ("flash", "efficient"))
    assert flash < plain
    gpu(flash, capability=(8, 0))
    assert plan_micro_batch(bf16, "ldm", 3, CUDA) == 30
    gpu(flash, capability=(7, 5))
    with pytest.raises(UserError, match="the card's memory"):
        plan_micro_batch(bf16, "ldm", 3, CUDA)


@pytest.mark.parametrize("auto", [False, True])
def test_a_process_plans_its_share_of_the_batch_and_gradients(monkeypatch, gpu, auto, capsys):
    """Of two processes each learns from 60 of the batch's 120 images, in 1 piece or 2 of 30."""
    monkeypatch.setattr("train.memory.fit.world_size", lambda: 2)
    config = tiny("ldm_training.batch_size=60", "ldm_training.gradient_accumulation_steps=2",
                  f"ldm_training.auto_batch={str(auto).lower()}")  # fmt: skip
    halves = Scenario(config, "ldm", 3)  # two pieces of 60: gradients are there while the second is computed
    at_once = account_of(halves)
    assert at_once.peak().bytes > account_of(halves.with_training(gradient_accumulation_steps=1)).peak().bytes
    gpu(needed_free(at_once))
    assert plan_micro_batch(config, "ldm", 3, CUDA) == 60
    assert f"need {at_once.peak().bytes / GiB:.2f} GiB" in capsys.readouterr().err
    gpu(needed_free(at_once) - 1 if auto else at_once.peak().bytes - 1)
    if auto:
        assert plan_micro_batch(config, "ldm", 3, CUDA) == 30
    else:
        with pytest.raises(UserError, match="60 images at once need"):
            plan_micro_batch(config, "ldm", 3, CUDA)


def test_auto_batch_refuses_a_gpu_too_small_for_a_single_image(gpu):
    gpu(10**6)
    with pytest.raises(UserError, match=r"1 images at once need .* are free; set gradient_checkpointing"):
        plan_micro_batch(tiny(*BATCH, "ldm_training.auto_batch=true"), "ldm", 3, CUDA)
