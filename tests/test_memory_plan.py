"""What fits: linearity, the largest batch, the allocator's rules, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_memory_closed_forms import config_of
from train import memcheck
from train.memory.account import Account
from train.memory.allocator import MEDIUM_SEGMENT, SMALL_SEGMENT, CachingAllocator, OutOfMemory
from train.memory.cards import CardType
from train.memory.plan import Growth, account_of, fits, levers, verified
from train.memory.setting import Setting

MiB = 2**20
SMALL_CARD = CardType("imaginary", 4.0, (7, 5))


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("stage", ["ldm", "vae", "sample"])
def test_every_storage_is_linear_in_the_batch(stage, checkpointing):
    config = config_of("light")
    setting = Setting(config, stage, validates=False).with_training(gradient_checkpointing=checkpointing == "true")
    growth = Growth(setting)
    for batch in (5, 16):
        assert np.array_equal(growth.sizes(batch), account_of(setting.with_training(batch_size=batch)).bytes)


def test_the_largest_batch_fits_and_the_next_does_not():
    setting = Setting(config_of("light"))
    largest = Growth(setting).largest(SMALL_CARD)
    assert verified(setting, largest, SMALL_CARD) == (True, False)


def test_no_lever_but_the_step_counts_of_a_fused_optimizer_adds_to_the_peak():
    setting = Setting(config_of("fp32"))
    before = account_of(setting).peak().bytes
    for lever in levers(setting):
        assert account_of(lever.setting).peak().bytes <= before + 1024 * 1024, lever.name


def test_segments_are_of_2_and_20_mib_or_rounded_to_2_mib():
    for size, segment in ((1, SMALL_SEGMENT), (MiB, SMALL_SEGMENT), (MiB + 1, MEDIUM_SEGMENT),
                          (10 * MiB - 512, MEDIUM_SEGMENT), (10 * MiB, 10 * MiB), (11 * MiB, 12 * MiB)):  # fmt: skip
        allocator = CachingAllocator()
        allocator.take(size)
        assert allocator.reserved == segment


def test_a_block_is_split_unless_little_remains():
    allocator = CachingAllocator()
    first = allocator.take(11 * MiB)  # of a segment of 12 MiB: 1 MiB remains, too little to be split off
    assert first.size == 12 * MiB
    allocator.give_back(first)
    assert allocator.take(10 * MiB).size == 10 * MiB  # 2 MiB remain
    assert allocator.reserved == 12 * MiB


def test_freed_neighbours_are_joined_and_used_again():
    allocator = CachingAllocator()
    blocks = [allocator.take(5 * MiB) for _ in range(4)]
    assert allocator.reserved == 20 * MiB
    for i in (1, 0, 3, 2):
        allocator.give_back(blocks[i])
    assert allocator.take(20 * MiB).size == 20 * MiB
    assert allocator.reserved == 20 * MiB


def test_free_segments_are_given_back_before_memory_runs_out():
    allocator = CachingAllocator(limit=50 * MiB)
    allocator.give_back(allocator.take(30 * MiB))
    allocator.take(40 * MiB)
    assert allocator.reserved == 40 * MiB
    with pytest.raises(OutOfMemory):
        allocator.take(20 * MiB)


def test_a_card_without_room_for_the_weights_fits_nothing():
    assert not fits(account_of(Setting(config_of("light"))), CardType("tiny", 1.0, (7, 5)))


def test_rows_of_the_table_add_up_to_the_peak():
    account = account_of(Setting(config_of("medium")))
    peak = account.peak()
    assert sum(sum(row.values()) for row in account.table(peak.clock).values()) == peak.bytes


def test_the_command_gives_an_account_to_programs(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--json"])
    account = json.loads(capsys.readouterr().out)
    assert account["measured"] is False
    assert sum(sum(row.values()) for row in account["at_peak"].values()) == account["peak"]["bytes"]


def test_the_command_prints_tables_and_draws_pictures(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "P100", "--advice", "--csv", str(tmp_path / "modules.csv"),
                   "--pictures", str(tmp_path)])  # fmt: skip
    printed = capsys.readouterr().out
    assert "predicted" in printed
    assert "P100" in printed
    assert {p.name for p in tmp_path.iterdir()} == {
        "modules.csv", "modules_at_peak.png", "timeline_by_category.png", "timeline_by_component.png",
    }  # fmt: skip


def test_births_and_deaths_are_in_order():
    account: Account = account_of(Setting(config_of("light")))
    assert (np.diff(account.born) > 0).all()
    assert (account.died > account.born).all()
