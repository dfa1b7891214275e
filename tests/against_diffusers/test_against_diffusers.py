"""The comparison with a plain script of `diffusers`: a very small one to its end, and what its table calls better."""

from pathlib import Path

import pytest

from tests.against_diffusers import __main__ as comparison
from tests.against_diffusers import plain
from tests.against_diffusers.table import Cell, exactly, figures, near_one, side_by_side, summary
from tests.judge.sample_evaluation import sample_evaluation
from tests.test_layout import OWN, imported
from tests.tiny import USERS, make_images
from train.base.errors import UserError
from train.base.files import read_json

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
BOTH = {"vae": 1, "unet": 2}
RUN = {"parameters": BOTH, "images_per_step": BOTH, "steps": BOTH, "seconds": {**BOTH, "sampling": 3}}


@pytest.mark.usefixtures("short_judgement")
def test_one_command_trains_and_judges_both(tmp_path):
    data, out, runs = make_images(tmp_path / "data", per_user=12), tmp_path / "table.md", tmp_path / "runs"
    comparison.main([str(runs), str(out), "--config", TINY, "--data_dir", str(data), "--quick",
                     "--set", "data.recordings_per_user=6"])  # fmt: skip
    made = [sorted(path.relative_to(runs / whose / "images") for path in (runs / whose / "images").glob("*/*.png"))
            for whose in ("ours", "diffusers")]  # fmt: skip
    assert made[0] == made[1]
    assert len(made[0]) == len(USERS) * 6
    both = read_json(runs / "runs.json")
    assert both["ours"]["parameters"]["vae"] == both["diffusers"]["parameters"]["vae"]
    for stage in ("vae", "unet"):
        assert both["diffusers"]["seconds"][stage] >= both["ours"]["seconds"][stage]
    ours, theirs = (read_json(runs / whose / "evaluation.json") for whose in ("ours", "diffusers"))
    assert ours["fidelity"] != theirs["fidelity"]
    assert ours["data"] == theirs["data"]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in out.read_text("utf-8").splitlines() if "|" in line]
    assert set(figures(ours, both["ours"])) <= set(rows)
    with pytest.raises(UserError, match="not an empty folder"):
        comparison.main([str(runs), str(out), "--config", TINY])


def test_the_plain_script_uses_nothing_of_this_project():
    used = {name.partition(".")[0] for name in imported(Path(plain.__file__))}
    assert used & OWN == set()
    assert "diffusers" in used


def test_a_table_has_the_same_rows_whatever_could_be_measured():
    full, less = sample_evaluation(), sample_evaluation() | {"distances": [], "coverage": None, "variety": None}
    assert list(figures(full, RUN)) == list(figures(less, RUN))


def test_two_equal_runs_are_better_in_nothing():
    equal = figures(sample_evaluation(), RUN)
    assert summary(equal, equal)[0].startswith("Ours is better in 0 of ")
    assert all("**" not in line.partition(" | ")[2] for line in side_by_side(equal, equal))


def test_better_is_what_lies_beyond_the_others_interval():
    assert Cell("55%", 0.5, 0.6).beats(Cell("35%", 0.3, 0.4))
    assert not Cell("50%", 0.4, 0.6).beats(Cell("40%", 0.3, 0.5))
    assert not Cell("unknown").beats(exactly("-1", -1.0))
    assert not exactly("1", 1.0).beats(Cell("unknown"))
    assert near_one(0.9).beats(near_one(1.2))
    assert near_one(1.1).beats(near_one(0.5))
    assert not near_one(1.091).beats(near_one(1.092))  # both are written 1.09
    lines = side_by_side({"a": exactly("1", 1), "b": exactly("2", 2)}, {"a": exactly("1", 1), "b": exactly("1", 1)})
    assert lines[2:] == ["| a | 1 | 1 |", "| b | **2** | 1 |"]
