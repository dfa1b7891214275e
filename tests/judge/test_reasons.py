"""Each reason speaks where its figures say so, and advises only then."""

from dataclasses import replace

import pytest
import torch

from tests.judge.made_up import material, numbered
from train.judge.arms import CURVE, GENERATED, REAL, RECONSTRUCTED, Arm
from train.judge.interval import Figure
from train.judge.material import TestSet as Unseen
from train.judge.reasons import reasons
from train.judge.verdict import Judgement

MORE = Arm("real + 1 x generated", "with generated", times=1.0)
FLAT = [0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
VAE, UNET, LESS, MORE_GUIDANCE = "vae_training", "ldm_training", "less guidance", "more guidance"


def found(
    real=0.9, reconstructed=0.9, made=0.9, three_quarters=0.9, right=0.9, could_be=0.9, variety=1.0, losses=FLAT,
    generated=4, ridge=None, blind=(), mixed=False,
) -> list[tuple[str, str]]:  # fmt: skip
    """The reasons, given what the network reached; nothing is wrong with the figures that are left out."""
    reached = {REAL: real, RECONSTRUCTED: reconstructed, GENERATED: made, MORE: 0.9}
    if three_quarters is not None:
        reached[CURVE[-1]] = three_quarters
    accuracy = {arm: Figure(mean, mean, mean, []) for arm, mean in reached.items()}
    one = Judgement("network", "", True, "", 0.1, accuracy, {MORE: accuracy[MORE]}, REAL, MORE)
    users = torch.arange(10) % 2
    made_users = users.repeat(6)[: round(generated * 10)]
    source = replace(material(numbered(users), numbered(made_users), Unseen(numbered(users), users)), mixed=mixed)
    measured = {
        "fidelity": {"power": [{"low": 0.0, "high": 0.25, "reconstructed": 1.0, "generated": 1.0},
                               {"low": 0.25, "high": 0.5, "reconstructed": 0.15, "generated": 0.1}]},
        "sight": {name: {"blind": name in blind, "doubts": "it can tell nothing" if name in blind else ""}
                  for name in ("network", "ridge")},
        "right_person": {"generated": {"mean": right}, "reconstructed": {"mean": could_be}},
        "reconstructions": {
            name: {"real": {"mean": real}, "trained_on": {"mean": kept}, "tested_on": {"mean": could_be}}
            for name, kept in (("network", reconstructed), ("ridge", real if ridge is None else ridge))
        },
        "variety": variety and {"generated": variety, "real": 1.0, "ratio": variety},
    }  # fmt: skip
    return reasons(one, measured, losses, source)


def advice(**figures) -> str:
    return "; ".join(to_try for _, to_try in found(**figures) if to_try)


def test_where_nothing_is_lost_nothing_is_advised():
    pairs = found()
    assert advice() == ""
    assert [said.split(":")[0] for said, _ in pairs] == ["VAE", "UNet"]
    assert "have 15.0% of the real images' power" in pairs[0][0]
    assert all("\n" not in said for said, _ in pairs)


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ({"reconstructed": 0.5, "made": 0.5}, VAE),  # the UNet loses nothing of what it gets
        ({"ridge": 0.5}, VAE),
        ({"made": 0.5}, UNET),
        ({"variety": 0.5}, LESS),
        ({"right": 0.5}, MORE_GUIDANCE),
        ({"losses": [0.5, 0.45, 0.4, 0.35]}, UNET),
        ({"losses": [0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.28]}, UNET),
        ({"three_quarters": 0.85}, "more real recordings"),
        ({"generated": 1}, "--per_training_image 4"),
        ({"generated": 3.5}, "--per_training_image 4"),
    ],
)
def test_each_loss_has_its_own_advice(figures, named):
    said = advice(**figures)
    assert named in said
    assert ";" not in said


@pytest.mark.parametrize(
    "figures",
    [
        {"reconstructed": 0.82, "made": 0.82},
        {"made": 0.82},
        {"variety": 0.86},
        {"right": 0.82},
        {"right": 0.5, "could_be": 0.5},  # what the VAE loses is not for guidance to mend
        {"variety": 1.5},
        {"variety": None},  # a single image of each user
        {"losses": [0.5, 0.3]},
        {"losses": []},
        {"losses": [0.3, 0.3, 0.3, 0.5]},
        {"three_quarters": 0.89},
        {"three_quarters": 0.95},
        {"three_quarters": None},
        {"generated": 3.7},
        {"generated": 6},
    ],
)
def test_what_is_no_loss_has_none(figures):
    assert advice(**figures) == ""


def test_too_little_variety_and_the_wrong_person_need_more_than_guidance():
    """Less of it would make the persons worse, and more of it the variety."""
    assert "guidance" not in advice(variety=0.5, right=0.5)


def test_mixed_images_need_not_show_the_right_person():
    pairs = found(right=0.5, mixed=True)
    assert "guidance" not in advice(right=0.5, mixed=True)
    assert any("another user's" in said for said, _ in pairs)


def test_what_a_judge_says_that_recognises_nobody_is_no_reason():
    bad = {"reconstructed": 0.05, "made": 0.05, "right": 0.05, "variety": 0.5, "three_quarters": 0.05, "ridge": 0.05}
    both = found(real=0.1, blind=("network", "ridge"), **bad)
    assert both[0][0].startswith("Judge: a network has learned from the real images, but it can tell nothing")
    assert [to_try for _, to_try in both if to_try] == ["more real images of each user, which a judge can learn from"]
    assert "VAE" not in advice(real=0.1, blind=("network", "ridge"), **bad)
    assert VAE in advice(real=0.5, blind=("network",), **bad)  # ridge regression recognises them, and it lost much


def test_figures_of_a_reason_are_in_its_sentence():
    pairs = {
        said.split(":")[0]: said
        for said, _ in found(variety=0.5, losses=[0.5, 0.45, 0.4, 0.35], three_quarters=0.8, generated=2)
    }
    assert "vary 0.50 times as much" in pairs["Guidance"]
    assert "from 0.4000 to 0.3500" in pairs["Too few steps"]
    assert "brought +10.0 points" in pairs["Few images"]
    assert "20 generated images are 2 for each real one" in pairs
