"""The table of ablations: what is run, and what its intervals are."""

from operator import attrgetter

import pytest

from tests.ablations import CONFIG, flags, half_widths, planned, table
from train.config.cli import make_parser, read_config

LISTED = {
    "data": {"walkers": {}, "voices": {"data.recordings_per_user": 10}},
    "vae": {"baseline": None, "wide": {"vae.latent_channels": 8}},
    "ldm": {"baseline": None, "on wide": {"vae": "wide", "vae.latent_channels": 8}},
    "sampling": {"guided": {"sampling.guidance": 2}},
}


def test_every_setting_is_run_on_all_data_with_the_same_seeds():
    runs = list(planned(LISTED, {"voices": "elsewhere"}, 2))
    assert len(runs) == len({run.folder("") for run in runs}) == 2 * 2 * 5
    assert {run.seed for run in runs} == {run.keys["seed"] for run in runs} == {0, 1}
    assert {run.keys["data.dir"] for run in runs if run.data == "voices"} == {"elsewhere"}
    (one,) = (run for run in runs if (run.setting, run.data, run.seed) == ("on wide", "voices", 1))
    assert one.vae == "wide"
    assert one.keys == {"data.recordings_per_user": 10, "data.dir": "elsewhere", "seed": 1, "vae.latent_channels": 8}


def test_the_words_of_a_command_give_the_config_these_values():
    keys = {"data.dir": "voices", "data.recording_pattern": r"_(\d+)\.", "seed": 3, "vae_loss.reconstruction": "l1",
            "vae_loss.kl_weight": 5e-4, "unet.condition_in_time_embedding": False}  # fmt: skip
    config = read_config(make_parser("vae", "", "vae").parse_args(["--config", CONFIG, *flags(keys)]), "vae")
    assert {key: attrgetter(key)(config) for key in keys} == keys


def test_the_interval_pools_the_variance_of_all_settings():
    # Variances 2 and 8 with one degree of freedom each: 5 with two, and a mean of two seeds has half of that.
    assert half_widths({"x": [[1.0, 3.0], [0.0, 4.0]]})["x"] == pytest.approx(4.3027 * 2.5**0.5, rel=1e-4)


def test_only_a_sure_difference_is_bold():
    rows = {"baseline": [1.0, 1.2], "better": [2.0, 2.2], "same": [1.1, 1.3]}
    lines = table({name: [{"figure": value} for value in values] for name, values in rows.items()})
    assert lines[2:5] == ["| baseline | 1.1 |", "| better | **2.1** |", "| same | 1.2 |"]
