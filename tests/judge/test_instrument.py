"""The instrument as a whole, on generated images of which it is known what they are worth.

Ten people of the simulator, a recording of each to train on, and four that are held out. The judge in closed form runs
all arms in every case, the network where it takes little time; `tests/judge/false_helps.py` runs everything.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.judge.cases import CASES, case, recorded
from tests.tiny import tiny, tiny_vae
from train.judge import measures
from train.judge.arms import REAL, Arm, plan, times_for
from train.judge.material import Material
from train.judge.material import TestSet as Unseen
from train.judge.network import Network
from train.judge.results import by_user
from train.judge.trials import Trials, images_asked_about, run_network, run_ridge
from train.judge.verdict import HARMS, HELPS, NO_DIFFERENCE, Judgement, judge, verdict

CPU, SEEDS, STEPS = torch.device("cpu"), [0, 1, 2], 100
PEOPLE, SIDE, SEED, TRAINED, RECORDINGS = range(1, 11), 32, 7, 1, 6
CHANCE = 1 / len(PEOPLE)
WORTHLESS = [name for name in CASES if name != "new recordings"]


@cache
def made(name: str) -> Material:
    return case(name, PEOPLE, SIDE, SEED, TRAINED, RECORDINGS)


def arms_of(source: Material) -> list[Arm]:
    counts = (one.users.bincount(minlength=source.num_users) for one in (source.training, source.generated))
    return plan(times_for(*counts), quick=True)


@cache
def by_ridge(name: str) -> tuple[Trials, Judgement]:
    source = made(name)
    trials = run_ridge(arms_of(source), SEEDS, source)
    return trials, judge("ridge", trials, "held_out", source.held_out)


@cache
def networks() -> list[Network]:
    """Trained on the real images, which are the same in all cases."""
    return run_network([REAL], SEEDS, made("noise"), STEPS, CPU).networks


@cache
def by_network(name: str) -> Trials:
    asked = images_asked_about(made(name), REAL)
    said = {key: torch.stack([one.recognised(images) for one in networks()]) for key, images in asked.items()}
    return Trials({REAL: said}, networks())


@cache
def distances(name: str) -> dict[tuple[str, str], dict]:
    """Of the generated images, by name and space."""
    found = measures.distances(made(name), networks()[0].features, 0)
    return {(one["name"], one["space"]): one for one in found if one["of"] == "generated"}


# ---- the verdict


def test_new_recordings_of_the_same_people_help():
    one = by_ridge("new recordings")[1]
    assert one.may_judge
    assert one.word == HELPS
    assert one.gain.mean > 0.05


@pytest.mark.parametrize("name", WORTHLESS)
def test_nothing_else_helps(name):
    """There is nothing in these images that the real ones do not hold."""
    one = by_ridge(name)[1]
    assert one.may_judge
    assert one.word in (NO_DIFFERENCE, HARMS)


@pytest.mark.parametrize("name", ["exact copies", "resampled"])
def test_copies_make_no_difference(name):
    one = by_ridge(name)[1]
    assert one.word == NO_DIFFERENCE
    assert abs(one.gain.mean) < 0.02


def test_noise_beside_little_data_is_no_help_to_ridge_regression():
    """It was, when spectra were not square roots and had the units of all images of an arm: here by 9 points."""
    one = by_ridge("noise")[1]
    assert max(gain.mean for gain in one.gains.values()) < 0.04


def test_images_under_anybodys_name_do_harm():
    assert by_ridge("shuffled labels")[1].word == HARMS


def test_the_network_is_not_fooled_by_copies_either():
    """It has more draws of the same images, with which it might be trained better: that is what oversampling is for."""
    source = made("resampled")
    arms = [arm for arm in arms_of(source) if arm.group != "alone" and not arm.augmented]
    trials = run_network(arms, SEEDS, source, 50, CPU)
    one = judge("network", trials, "held_out", source.held_out)
    assert one.may_judge
    assert one.word == NO_DIFFERENCE
    assert verdict([one, by_ridge("resampled")[1]])["word"] == NO_DIFFERENCE


# ---- the right person


@cache
def right_person(name: str) -> dict:
    return measures.right_person(made(name), by_network(name))


@pytest.mark.parametrize("name", ["exact copies", "resampled", "collapsed"])
def test_copies_show_the_right_person(name):
    assert right_person(name)["generated"]["mean"] > 0.97


@pytest.mark.parametrize("name", ["shuffled labels", "noise"])
def test_shuffled_labels_and_noise_show_anybody(name):
    figure = right_person(name)["generated"]
    assert figure["mean"] == pytest.approx(CHANCE, abs=0.07)
    assert figure["mean"] < right_person(name)["held_out"]["low"]


def test_swapped_users_stand_out_in_the_confusion_matrix():
    confusion = torch.tensor(right_person("two users swapped")["confusion"])
    asked = confusion.sum(1)
    assert (asked == len(SEEDS) * 10).all()
    assert confusion[0, 1] > 0.9 * asked[0]
    assert confusion[1, 0] > 0.9 * asked[1]
    assert (confusion.diagonal()[2:] > 0.9 * asked[2:]).all()
    assert right_person("two users swapped")["generated"]["mean"] == pytest.approx(1 - 2 * CHANCE, abs=0.05)


def test_swapped_users_lose_and_the_others_do_not():
    source, (trials, one) = made("two users swapped"), by_ridge("two users swapped")
    usual = next(arm for arm in one.gains if arm.times == 1 and not arm.augmented)
    both = {"ridge": trials, "network": by_network("two users swapped")}
    found = by_user(replace(one, best=usual), both, "held_out", source.held_out, source)["users"]
    right = [row["right_person"] for row in found]
    assert max(right[:2]) < 0.1
    assert min(right[2:]) > 0.9
    gains = [row["gain"] for row in found]
    assert sum(gains[:2]) / 2 < -0.1
    assert sum(gains[2:]) / 8 > -0.05


# ---- distances, variety, power


@pytest.mark.parametrize("space", ["network's features", "row spectra"])
@pytest.mark.parametrize("distance", ["Fréchet distance", "kernel distance"])
def test_every_distance_tells_noise_blur_and_collapse_from_real(distance, space):
    for name in ("noise", "blurred", "collapsed"):
        if (name, distance, space) == ("collapsed", "kernel distance", "network's features"):
            continue  # whose floor of ten people's recordings is too high for ten images
        one = distances(name)[distance, space]
        assert one["value"] > one["floor_high"], name
        assert not one["same"]
    noise = distances("noise")[distance, space]
    assert noise["value"] > 3 * abs(noise["floor"])


def test_on_two_halves_of_real_data_every_distance_says_same():
    """Nobody has seen either half: of four held-out recordings of each person, two play the generated images."""
    real, number = recorded(PEOPLE, RECORDINGS, SIDE, SEED)
    for halves in ((2, 3), (2, 4), (3, 5)):
        place = number % RECORDINGS
        half = torch.isin(place, torch.tensor(halves))
        rest = (place >= 2) & ~half
        source = replace(made("noise"), generated=real.of(half), held_out=Unseen(real.of(rest), number[rest]))
        found = measures.distances(source, networks()[0].features, 0)
        said = {(one["name"], one["space"]): one for one in found if one["of"] == "generated"}
        assert len(said) == 4
        assert all(one["same"] for one in said.values()), said


def test_variety_falls_for_a_collapsed_generator():
    ratio = {name: measures.variety_within_users(made(name))["ratio"] for name in CASES}
    assert ratio["collapsed"] == pytest.approx(0, abs=1e-6)
    assert ratio["exact copies"] == pytest.approx(1)
    assert 0.8 < ratio["new recordings"] < 1.25
    assert ratio["shuffled labels"] > 1.1


def test_coverage_falls_for_a_collapsed_generator():
    seen = networks()[0].features
    collapsed, new = (measures.coverage(made(name), seen, 0) for name in ("collapsed", "new recordings"))
    assert collapsed["generated"]["coverage"] < 0.5 * collapsed["floor"]["coverage"]
    assert collapsed["generated"]["recall"] < 0.5 * collapsed["floor"]["recall"]
    assert new["generated"]["coverage"] > 0.8 * new["floor"]["coverage"]
    noise = measures.coverage(made("noise"), seen, 0)
    assert noise["generated"]["coverage"] < 0.5 * noise["floor"]["coverage"]
    assert noise["generated"]["recall"] < 0.5 * noise["floor"]["recall"]


def test_fine_power_falls_for_blur():
    vae = tiny_vae(tiny())
    fine = {
        name: measures.fidelity_of(made(name), vae, CPU)["power"][-1]["generated"]
        for name in ("blurred", "new recordings")
    }
    assert fine["blurred"] < 0.2
    assert fine["new recordings"] == pytest.approx(1, abs=0.1)


# ---- copies


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("exact copies", 1, 1), ("resampled", 1, 1), ("collapsed", 1, 1), ("new recordings", 0, 0.01), ("noise", 0, 0)],
)
def test_copies_are_accused_and_new_recordings_are_not(name, least, most):
    source = made(name)
    found = measures.copies(source, networks()[0].features)
    assert least <= found["generated_accused"] / found["generated"] <= most
    assert found["held_out_accused"] <= 0.01 * found["held_out"]
    pair = found["pairs"][0]
    assert pair["accused"] == (least > 0 or found["generated_accused"] > 0)
    assert source.training_files[pair["training_row"]] == pair["training"]
    assert source.generated_files[pair["generated_row"]] == pair["generated"]
    assert source.training.users[pair["training_row"]] == source.generated.users[pair["generated_row"]]
