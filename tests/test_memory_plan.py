"""What fits: linearity, the largest batch, the allocator's rules, and the command."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.test_memory_closed_forms import config_of
from train import memcheck
from train.base.errors import UserError
from train.memory import fit as plan
from train.memory import run, stages
from train.memory.account import Account
from train.memory.allocator import MEDIUM_SEGMENT, SMALL_SEGMENT, CachingAllocator, OutOfMemory, Replay, rounded, served
from train.memory.fit import (
    Growth,
    account_of,
    cheapest_that_fits,
    fits,
    fits_traced,
    largest_batch,
    left,
    levers,
    on_card,
    room,
    runs,
    traced,
)  # fmt: skip
from train.memory.gpus import CARDS, CardType, card_named
from train.memory.overhead import cublas
from train.memory.scenario import Setting
from train.memory.stages import trace

MiB = 2**20
SMALL_CARD = CardType("imaginary", 4.0, (7, 5), "")


CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True])


@CHECKPOINTING
@pytest.mark.parametrize("stage", ["ldm", "vae", "sample"])
def test_every_storage_is_linear_in_the_batch(stage, checkpointing):
    setting = Setting(config_of("light"), stage).with_training(gradient_checkpointing=checkpointing, batch_size=2)
    for batch in (2, 5, 16):
        ours = setting.with_training(batch_size=batch)
        grown, itself = account_of(ours), traced(ours)
        for what in ("bytes", "born", "died"):
            assert np.array_equal(getattr(grown, what), getattr(itself, what))


@pytest.mark.parametrize("users", [33, 11 * 13])
def test_a_prime_that_the_users_are_a_multiple_of_is_not_the_batch_that_tells(users):
    setting = Setting(config_of("light"), users=users, validates=False)
    assert account_of(setting).bytes.tolist() == traced(setting).bytes.tolist()


def test_norms_that_are_clipped_are_the_optimizers_and_do_not_grow_with_the_batch():
    """A discriminator has 13 tensors, and images of 88 pixels have the account traced at batch 13."""
    config = config_of("adversarial", "data.resolution=88", "vae.channels=[32, 64, 64]", "vae.norm_groups=8")
    setting = Setting(config, "vae").with_training(batch_size=2)
    assert account_of(setting).bytes.tolist() == traced(setting).bytes.tolist()
    assert {s.phase for s in traced(setting).storages if s.operator == "stack"} == {"optimizer"}


def test_modules_are_told_apart_down_to_the_block():
    for stage, blocks in (("ldm", "UNet.up_blocks."), ("vae", "VAE.decoder.up_blocks.")):
        account = account_of(Setting(config_of("light"), stage))
        names = [name for name in account.modules(account.peak().clock) if name.startswith(blocks)]
        assert len(names) > 1
        assert all(name.removeprefix(blocks).isdigit() for name in names)


@CHECKPOINTING
def test_the_largest_batch_traced_itself_fits_and_the_next_does_not(checkpointing):
    setting = Setting(config_of("light")).with_training(gradient_checkpointing=checkpointing)
    largest = largest_batch(setting, SMALL_CARD)
    assert fits_traced(setting, largest, SMALL_CARD)
    assert not fits_traced(setting, largest + 1, SMALL_CARD)


def test_a_card_that_holds_one_sample_only_has_a_largest_batch_of_one():
    setting = Setting(config_of("light"), "vae", validates=False)
    one, two = (served(account_of(setting.with_training(batch_size=batch))) for batch in (1, 2))
    assert one.peak_reserved < two.peak_allocated
    around = SMALL_CARD.bytes - room(SMALL_CARD, account_of(setting))
    for limit, largest in ((two.peak_allocated - 1, 1), (one.peak_allocated - 1, 0)):
        assert largest_batch(setting, replace(SMALL_CARD, memory=(limit + around) / 2**30)) == largest


def test_attention_is_that_of_the_card():
    old, new = CardType("old", 16.0, (6, 0), ""), CardType("new", 16.0, (8, 0), "")
    half = Setting(config_of("medium"))
    assert [on_card(half, card).attention for card in (old, new)] == ["efficient", "flash"]
    bf16 = half.with_training(mixed_precision="bf16")
    assert not runs(bf16, old)
    operators = {kind: {s.operator for s in account_of(replace(bf16, attention=kind, validates=False)).storages}
                 for kind in ("efficient", "flash")}  # fmt: skip
    assert "_scaled_dot_product_flash_attention" in operators["flash"]
    assert not any("efficient" in name for name in operators["efficient"])  # bf16 before Ampere: the plain one


def test_no_lever_but_the_step_counts_of_a_fused_optimizer_adds_to_the_peak():
    setting = Setting(config_of("fp32"))
    before = account_of(setting).peak().bytes
    for lever in levers(setting):
        assert account_of(lever.pull(setting)).peak().bytes <= before + MiB, lever.name


def in_pieces_of(size: int, setting: Setting) -> Setting:
    return setting.with_training(batch_size=size, gradient_accumulation_steps=setting.training.window // size)


def test_the_set_that_fits_is_no_larger_than_it_must_be():
    setting = Setting(config_of("light"), validates=False).with_training(batch_size=64)
    pulled = cheapest_that_fits(setting, SMALL_CARD)
    by_name = {lever.name: lever for lever in levers(setting)}

    def fits_with(names: list[str]) -> bool:
        ours = setting
        for name in names:
            size = re.fullmatch(r"batch_size (\d+), accumulated", name)
            ours = in_pieces_of(int(size[1]), ours) if size else by_name[name].pull(ours)
        return fits(account_of(ours), SMALL_CARD)

    assert pulled
    assert fits_with(pulled)
    assert not any(fits_with([name for name in pulled if name != left]) for left in pulled)


def test_a_micro_batch_that_fits_is_no_smaller_than_it_must_be():
    setting = Setting(config_of("light"), validates=False).with_training(
        batch_size=200, gradient_accumulation_steps=1, mixed_precision="fp16"
    )
    pulled = cheapest_that_fits(setting, SMALL_CARD)
    size = int(pulled[-1].removeprefix("batch_size ").removesuffix(", accumulated"))
    sizes = [size for size in range(1, 200) if 200 % size == 0]
    larger = sizes[sizes.index(size) + 1]
    assert size > 1
    assert pulled == [f"batch_size {size}, accumulated"]
    assert fits(account_of(in_pieces_of(size, setting)), SMALL_CARD)
    assert not fits(account_of(in_pieces_of(larger, setting)), SMALL_CARD)


class Program:
    """What asks an allocator for memory."""

    def __init__(self, limit: int | None = None):
        self.allocator, self.sizes = CachingAllocator(limit), []

    def take(self, size: int) -> int:
        """The number of the request, by which it is given back."""
        self.sizes.append(int(rounded(np.array(size))))
        number = len(self.sizes) - 1
        self.allocator.serve([number], self.sizes)
        return number

    def give_back(self, number: int) -> None:
        self.allocator.serve([~number], self.sizes)


def test_segments_are_of_2_and_20_mib_or_rounded_to_2_mib():
    for size, segment in ((1, SMALL_SEGMENT), (MiB, SMALL_SEGMENT), (MiB + 1, MEDIUM_SEGMENT),
                          (10 * MiB - 512, MEDIUM_SEGMENT), (10 * MiB, 10 * MiB), (11 * MiB, 12 * MiB)):  # fmt: skip
        program = Program()
        program.take(size)
        assert program.allocator.reserved == segment


def test_a_block_is_split_unless_little_remains():
    program = Program()
    first = program.take(11 * MiB)  # of a segment of 12 MiB: 1 MiB remains, too little to be split off
    assert program.allocator.allocated == 12 * MiB
    program.give_back(first)
    program.take(10 * MiB)  # 2 MiB remain
    assert (program.allocator.allocated, program.allocator.reserved) == (10 * MiB, 12 * MiB)


def test_freed_neighbours_are_joined_and_used_again():
    program = Program()
    blocks = [program.take(5 * MiB) for _ in range(4)]
    assert program.allocator.reserved == 20 * MiB
    for i in (1, 0, 3, 2):
        program.give_back(blocks[i])
    program.take(20 * MiB)
    assert program.allocator.reserved == program.allocator.allocated == 20 * MiB


def test_blocks_of_two_segments_are_never_joined():
    program = Program()
    for block in [program.take(20 * MiB) for _ in range(2)]:
        program.give_back(block)
    program.take(40 * MiB)
    assert program.allocator.reserved == 80 * MiB


def test_free_segments_are_given_back_before_memory_runs_out():
    program = Program(limit=50 * MiB)
    program.give_back(program.take(30 * MiB))
    program.take(40 * MiB)
    assert program.allocator.reserved == 40 * MiB
    with pytest.raises(OutOfMemory):
        program.take(20 * MiB)


def test_a_common_beginning_served_once_changes_nothing():
    growth = Growth(Setting(config_of("light"), validates=False))
    sizes, whole = growth.sizes(20), room(SMALL_CARD, growth.traced)
    for limit in (None, whole, whole // 2):
        peaks = []
        for growing in (None, growth.slope != 0):
            try:
                given = Replay(growth.traced, growing).serve(sizes, limit)
                peaks.append((given.peak_allocated, given.peak_reserved, given.reserved))
            except OutOfMemory as error:
                peaks.append(str(error))
        assert peaks[0] == peaks[1]


@pytest.mark.parametrize("stage", ["vae", "ldm", "sample"])
def test_flipped_images_have_an_account_and_no_cached_latents_to_be_advised(stage):
    flipped = config_of("demo", "latents.cache_latents=false", "data.horizontal_flip=true")
    plain = config_of("demo", "latents.cache_latents=false")
    ours, theirs = (account_of(Setting(config, stage)) for config in (flipped, plain))
    assert np.array_equal(ours.bytes, theirs.bytes)
    assert "cache_latents" not in [lever.name for lever in levers(Setting(flipped, stage))]


def test_a_card_that_no_batch_fits_on_is_told_so(capsys):
    memcheck.main(["--config", "configs/sd.yaml", "--gpu", "RTX3060"])
    printed = capsys.readouterr().out
    assert "RTX3060: " in printed
    assert "lever, traced by itself" in printed


def test_a_card_that_is_refused_the_precision_is_told_what_fits(capsys):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "T4", "--set", "ldm_training.mixed_precision=bf16"])
    printed = capsys.readouterr().out
    assert "no bf16" in printed
    assert "T4: fits with mixed_precision fp16." in printed


def test_what_one_of_two_cards_holds_is_what_its_training_plans():
    config = config_of("light", "ldm_training.batch_size=4", "ldm_training.gradient_accumulation_steps=1")
    one = Setting(config, validates=False)
    half = one.of_one_process(2, 4)
    assert (half.training.batch_size, half.training.gradient_accumulation_steps) == (2, 1)
    gradients = account_of(half).of_category("gradients", account_of(half).forward_ends[0])
    assert gradients == 0  # of the first micro-batch; the second stands for all, since buckets keep them
    assert account_of(half).of_category("gradients", account_of(half).forward_ends[1]) > 0
    assert account_of(one).of_category("gradients", account_of(one).forward_ends[-1]) == 0


@pytest.mark.parametrize(("capability", "kernel"), [((6, 0), "efficient"), ((7, 5), "math"), ((8, 0), "flash")])
def test_heads_of_an_odd_width_take_the_plain_kernel_where_tensor_cores_want_them_aligned(capability, kernel):
    narrow_heads = config_of("light", "unet.num_heads=16")
    assert on_card(Setting(narrow_heads), CardType("x", 16.0, capability, "")).attention == kernel
    assert on_card(Setting(config_of("light")), CardType("x", 16.0, (7, 5), "")).attention == "efficient"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("A100", "--gpu A100: which of A100-40GB, A100-80GB?"), ("rtx", "--gpu rtx: which of RTX3060, RTX4090?"),
     ("", "--gpu : not a known card: P100, T4,"), ("RTX4091", "not a known card (did you mean RTX4090?): P100, T4,")],
)  # fmt: skip
def test_a_name_that_no_card_or_several_have_is_refused(name, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        card_named(name)


def test_a_card_is_known_by_its_name_or_as_much_of_it_as_no_other_has():
    assert [card_named(card.name) for card in CARDS] == list(CARDS)
    assert card_named("v100 32").name == "V100-32GB"
    assert card_named("rtx30").name == "RTX3060"


def test_what_is_left_is_what_the_allocator_never_takes_or_how_much_is_missing():
    account = account_of(Setting(config_of("fp32"), validates=False))
    most = served(account).peak_reserved
    assert left(account, most + 5) == 5
    fitting = next(limit for limit in range(most - 2 * MiB, 0, -2 * MiB) if left(account, limit) < 0)
    assert fitting + 2 * MiB < most  # free segments given back have made room
    assert left(account, fitting) == fitting - most
    assert 0 <= left(account, fitting + 2 * MiB) < 20 * MiB


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [("--users 65537", "--users 65537: must be at least 1 and at most 65536"),
     ("--ranks 1000000", "--ranks 1000000: must be at least 1 and at most 1024"),
     ("--batch_size 1000000000", "gradient_accumulation_steps = 1000000000: must be at least 1 and at most 65536"),
     ("--csv=", "--csv: needs a value"), ("--pictures=", "--pictures: needs a value"),
     ("--measure=", "--measure: needs a value"), ("--measure x --json", "goes with none of --gpu, --json")],
)  # fmt: skip
def test_what_no_account_can_be_made_of_is_refused_in_a_sentence(flags, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        memcheck.main(["--config", "configs/demo.yaml", "--set", "ldm_training.gradient_accumulation_steps=1",
                       *flags.split()])  # fmt: skip


def test_pictures_may_go_into_the_folder_that_one_is_in(tmp_path: Path, monkeypatch, capsys):
    config = Path("configs/demo.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    memcheck.main(["--config", str(config), "--stage", "sample", "--pictures", "."])
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_table_of_modules_overwrites_nothing_but_its_like(tmp_path: Path, capsys):
    mine, modules = tmp_path / "mine.yaml", tmp_path / "modules.csv"
    mine.write_text("base: demo.yaml\n")
    with pytest.raises(UserError, match="holds something else"):
        memcheck.main(["--config", "configs/demo.yaml", "--csv", str(mine)])
    assert mine.read_text() == "base: demo.yaml\n"
    for _ in range(2):
        memcheck.main(["--config", "configs/demo.yaml", "--stage", "sample", "--csv", str(modules)])
    assert modules.read_bytes().startswith(b"module,")


def test_a_table_as_long_as_a_multiple_of_the_traced_batch_does_not_grow_with_the_batch():
    setting = Setting(config_of("demo", "schedule.num_train_timesteps=1100"), validates=False)
    assert account_of(setting).bytes.tolist() == traced(setting).bytes.tolist()


def test_heads_that_are_no_multiple_of_8_wide_have_wider_copies_for_flash_attention():
    config = config_of("medium", "unet.num_heads=32", "ldm_training.mixed_precision=bf16")
    account = account_of(Setting(config, attention="flash", validates=False))
    kept = {s.operator for s, category in zip(account.storages, account.category, strict=True)
            if category == "activations" and "attn" in s.module}  # fmt: skip
    assert "constant_pad_nd" in kept


@CHECKPOINTING
def test_the_largest_batch_of_a_card_does_not_depend_on_which_others_are_asked_for(checkpointing):
    setting = Setting(config_of("light")).with_training(gradient_checkpointing=checkpointing)
    cards = [CardType(str(size), size, (7, 5), "") for size in (4.0, 5.5, 7.0)]
    together = [largest_batch(setting, card) for card in cards]
    for card, largest in zip(cards, together, strict=True):
        plan._growth.cache_clear()
        assert largest_batch(setting, card) == largest


def test_a_card_without_room_for_the_weights_fits_nothing():
    assert not fits(account_of(Setting(config_of("light"))), CardType("tiny", 1.0, (7, 5), ""))


def test_rows_of_the_table_add_up_to_the_peak():
    account = account_of(Setting(config_of("medium")))
    peak = account.peak()
    assert sum(sum(row.values()) for row in account.table(peak.clock).values()) == peak.bytes


def test_the_command_gives_an_account_to_programs(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "T4", "--json"])
    account = json.loads(capsys.readouterr().out)
    assert account["measured"] is False
    assert sum(sum(row.values()) for row in account["at_peak"].values()) == account["peak"]["bytes"]
    assert {"card", "bytes", "fits", "left", "largest_batch"} <= account["cards"][0].keys()
    assert account["advice"]


def test_the_command_prints_tables_and_draws_pictures(capsys, tmp_path: Path):
    memcheck.main(["--config", "configs/demo.yaml", "--gpu", "P100", "--csv", str(tmp_path / "modules.csv"),
                   "--pictures", str(tmp_path)])  # fmt: skip
    printed = capsys.readouterr().out
    assert "predicted" in printed
    assert "P100" in printed
    assert {p.name for p in tmp_path.iterdir()} == {
        "modules.csv", "memory_modules.png", "memory_timeline.png", "memory_components.png",
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_several_cards_have_buffers_to_exchange_gradients_through(ranks, capsys):
    memcheck.main(["--config", "configs/demo.yaml", "--ranks", str(ranks), "--gpu", "T4"])
    assert ("NCCL buffers" in capsys.readouterr().out) == (ranks > 1)


def test_cards_that_do_not_divide_the_optimizers_state_are_advised_to():
    whole = Setting(config_of("light"), processes=2, validates=False)
    lever = {lever.name: lever for lever in levers(whole)}["shard_optimizer"]
    assert account_of(lever.pull(whole)).peak().bytes < account_of(whole).peak().bytes
    assert "shard_optimizer" not in [other.name for other in levers(lever.pull(whole))]


def test_sampling_on_several_cards_is_refused():
    with pytest.raises(UserError, match="on one card"):
        memcheck.main(["--config", "configs/demo.yaml", "--stage", "sample", "--ranks", "2"])


def test_births_and_deaths_are_in_order():
    account: Account = account_of(Setting(config_of("light")))
    assert (np.diff(account.born) > 0).all()
    assert (account.died > account.born).all()


@pytest.mark.parametrize("precision", ["no", "fp16"])
@pytest.mark.parametrize("stage", ["ldm", "vae"])
@pytest.mark.parametrize("name", ["as it is", "optimizer.fused", "shard_optimizer on 2 cards", "ema_on_cpu"])
def test_what_is_written_down_again_is_what_a_run_of_its_own_takes(stage, name, precision):
    setting = Setting(config_of("demo"), stage).with_training(
        batch_size=4, gradient_accumulation_steps=2, mixed_precision=precision
    )
    trace(setting)
    pulled = {lever.name: lever.pull(setting) for lever in levers(setting)}.get(name, setting)
    first, again = (Account(trace(pulled)) for _ in range(2))
    for known in (stages._on_meta, stages._known):
        known.cache_clear()
    fresh = Account(trace(pulled))
    for other in (again, fresh):
        for what in ("bytes", "born", "died", "category", "forward_ends"):
            assert np.array_equal(getattr(first, what), getattr(other, what))
        places = [[(s.phase, s.operator, s.module) for s in account.storages] for account in (first, other)]
        assert places[0] == places[1]


def test_a_window_is_traced_once_for_all_optimizers(monkeypatch):
    setting = Setting(config_of("demo", "ldm_loss.condition_dropout=0.11"))  # no other test has traced this one
    windows = []
    accumulate = run.accumulate_gradients
    monkeypatch.setattr(run, "accumulate_gradients", lambda *args: windows.append(args) or accumulate(*args))
    for each in (setting, setting.with_fused(True), setting.with_training(ema_on_cpu=True)):
        trace(each)
    assert len(windows) == 1
    trace(setting.with_training(batch_size=setting.training.batch_size + 1))
    assert len(windows) == 2


def test_a_training_has_a_workspace_for_each_of_its_two_threads_and_sampling_one():
    old, hopper = CardType("old", 16.0, (7, 5), ""), CardType("new", 80.0, (9, 0), "")
    training, sampling = (account_of(Setting(config_of("demo"), stage)) for stage in ("ldm", "sample"))
    assert [cublas(old, account).bytes for account in (training, sampling)] == [2 * 8_519_680, 8_519_680]
    assert [cublas(hopper, account).bytes for account in (training, sampling)] == [64 * MiB, 32 * MiB]
