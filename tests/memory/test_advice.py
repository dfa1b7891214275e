"""Levers: what each saves, and that no more of them are pulled than a run needs."""

import re

import numpy as np
import pytest

from tests.memory.presets import SMALL_GPU, config_of, forget_traces
from train.base.units import MiB
from train.memory.advice import cheapest_that_fits, levers
from train.memory.fit import account_of, fits
from train.memory.scenario import Scenario


def test_no_lever_raises_the_peak_by_more_than_one_mib():
    scenario = Scenario(config_of("fp32"))
    before = account_of(scenario).peak().bytes
    for lever in levers(scenario):
        assert account_of(lever.pull(scenario)).peak().bytes <= before + MiB, lever.name


def test_the_set_that_fits_is_no_larger_than_it_must_be():
    scenario = Scenario(config_of("light"), validates=False).with_training(batch_size=64, lean_activations=False)
    pulled = cheapest_that_fits(scenario, SMALL_GPU)
    by_name = {lever.name: lever for lever in levers(scenario)}

    def fits_with(names: list[str]) -> bool:
        ours = scenario
        for name in names:
            size = re.fullmatch(r"batch_size (\d+), accumulated", name)
            ours = ours.accumulated(int(size[1])) if size else by_name[name].pull(ours)
        return fits(account_of(ours), SMALL_GPU)

    assert pulled
    assert fits_with(pulled)
    assert not any(fits_with([name for name in pulled if name != left]) for left in pulled)


def test_a_micro_batch_that_fits_is_no_smaller_than_it_must_be():
    scenario = Scenario(config_of("light"), validates=False).with_training(
        batch_size=500, gradient_accumulation_steps=1, mixed_precision="fp16"
    )
    pulled = cheapest_that_fits(scenario, SMALL_GPU)
    size = int(pulled[-1].removeprefix("batch_size ").removesuffix(", accumulated"))
    sizes = [size for size in range(1, 500) if 500 % size == 0]
    larger = sizes[sizes.index(size) + 1]
    assert size > 1
    assert pulled == [f"batch_size {size}, accumulated"]
    assert fits(account_of(scenario.accumulated(size)), SMALL_GPU)
    assert not fits(account_of(scenario.accumulated(larger)), SMALL_GPU)


@pytest.mark.parametrize("stage", ["vae", "ldm", "sample"])
def test_flips_take_no_memory_and_are_not_advised_to_be_cached(stage):
    flipped = config_of("demo", "latents.cache_latents=false", "data.horizontal_flip=true")
    plain = config_of("demo", "latents.cache_latents=false")
    ours = account_of(Scenario(flipped, stage))
    forget_traces()  # else the second would be written down from the first
    theirs = account_of(Scenario(plain, stage))
    assert np.array_equal(ours.bytes, theirs.bytes)
    assert "cache_latents" not in [lever.name for lever in levers(Scenario(flipped, stage))]


def test_gpus_with_a_whole_optimizer_state_are_advised_to_divide():
    whole = Scenario(config_of("light"), processes=2, validates=False)
    lever = {lever.name: lever for lever in levers(whole)}["shard_optimizer"]
    assert account_of(lever.pull(whole)).peak().bytes < account_of(whole).peak().bytes
    assert "shard_optimizer" not in [other.name for other in levers(lever.pull(whole))]
