"""The sums that an account gives: by component, by module, over time."""

import numpy as np

from tests.memory.presets import config_of
from train.memory.fit import account_of
from train.memory.scenario import Scenario


def test_modules_are_told_apart_down_to_the_block():
    for stage, blocks in (("ldm", "UNet.up_blocks."), ("vae", "VAE.decoder.up_blocks.")):
        account = account_of(Scenario(config_of("light"), stage))
        names = [name for name in account.modules(account.peak().clock) if name.startswith(blocks)]
        assert len(names) > 1
        assert all(name.removeprefix(blocks).isdigit() for name in names)


def test_rows_of_the_table_add_up_to_the_peak():
    account = account_of(Scenario(config_of("medium")))
    peak = account.peak()
    assert sum(sum(row.values()) for row in account.table(peak.clock).values()) == peak.bytes


def test_births_and_deaths_are_in_order():
    account = account_of(Scenario(config_of("light")))
    assert (np.diff(account.born) > 0).all()
    assert (account.died > account.born).all()
