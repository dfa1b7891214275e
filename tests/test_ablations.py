"""The table of ablations: what is run, and what its intervals are."""

import pytest

from tests.ablations import half_widths, planned, table

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


def test_data_may_have_some_stages_only():
    listed = {**LISTED, "data": {"voices": {"only": ["vae"], "data.resolution": 64}}}
    first = next(planned(listed, {}, 1))
    assert (first.stage, first.keys) == ("vae", {"data.resolution": 64, "seed": 0})
    assert {run.stage for run in planned(listed, {}, 1)} == {"vae"}


def test_the_interval_pools_the_variance_of_all_settings():
    # Variances 2 and 8 with one degree of freedom each: 5 with two, and a mean of two seeds has half of that.
    assert half_widths({"x": [[1.0, 3.0], [0.0, 4.0]]})["x"] == pytest.approx(4.3027 * 2.5**0.5, rel=1e-4)


def test_only_a_sure_difference_is_bold():
    rows = {"baseline": [1.0, 1.2], "better": [2.0, 2.2], "same": [1.1, 1.3]}
    lines = table({name: [{"figure": value} for value in values] for name, values in rows.items()})
    assert lines[2:5] == ["| baseline | 1.1 |", "| better | **2.1** |", "| same | 1.2 |"]
