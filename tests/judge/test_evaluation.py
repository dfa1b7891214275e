"""Laws of the whole evaluation: it holds what its report shows, as JSON, and is a function of its seed."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.judge.cases import case
from tests.tiny import tiny, tiny_vae
from train.judge import network
from train.judge.evaluation import evaluate, run_trials
from train.judge.labelled import Labelled
from train.judge.material import Material
from train.judge.material import TestSet as Unseen

CPU, PEOPLE, SIDE = torch.device("cpu"), range(1, 5), 16
WORDS = ("helps", "does harm", "makes no difference that could be seen", "cannot be told")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(network, "LEAST_STEPS", 5)
    monkeypatch.setattr(network, "MOST_STEPS", 10)


@cache
def source(name: str = "new recordings") -> Material:
    return case(name, PEOPLE, SIDE, 0, 1, 4)


def evaluated(material: Material, quick: bool = True, seed: int = 0, heard: list | None = None) -> dict:
    say = (lambda _: None) if heard is None else heard.append
    return evaluate(material, tiny_vae(tiny()), [0.5, 0.4, 0.3, 0.3], quick, seed, CPU, say)


def numbers(value: object) -> list:
    if isinstance(value, dict):
        return [number for one in value.values() for number in numbers(one)]
    if isinstance(value, list | tuple):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, float) else []


def test_an_evaluation_is_a_function_of_its_seed():
    """Its time apart; and a caller's random numbers are none of its business."""
    first = evaluated(source())
    torch.manual_seed(99)
    second, other = evaluated(source()), evaluated(source(), seed=1)
    for found in (first, second, other):
        del found["seconds"]
    assert first == second
    assert first["results"] != other["results"]


@pytest.mark.parametrize("quick", [True, False])
def test_an_evaluation_holds_what_was_asked_for(quick):
    heard = []
    material = source()
    other = Unseen(material.held_out.images.of(torch.arange(10)), material.held_out.recordings[:10])  # of one user
    found = evaluated(replace(material, other_conditions=other), quick, heard=heard)
    assert json.loads(json.dumps(found, allow_nan=False))["quick"] == quick
    assert all(torch.tensor(numbers(found)).isfinite())
    assert found["settings"]["seeds"] == list(range(3 if quick else 5))
    assert found["data"]["held_out_recordings"] == 8
    assert set(found["results"]) == {"held_out", "test_dir"}
    for name, result in found["results"].items():
        assert result["verdict"]["word"] in WORDS
        assert result["verdict"]["sentence"].startswith(result["verdict"]["word"])
        assert [one["name"] for one in result["judges"]] == ["network", "ridge"]
        shown = {(arm["judge"], arm["name"], arm["exposure"]) for arm in result["arms"]}
        assert len(shown) == len(result["arms"]) == (10 + 6 if quick else 17 + 11)
        assert [row["name"] for row in result["users"]] == (
            ["ID1"] if name == "test_dir" else ["ID1", "ID2", "ID3", "ID4"]
        )
        assert len(result["learning_curve"]) == (0 if quick else 8)
        assert len(result["worth"]) == (0 if quick else 2)
        for arm in result["arms"]:
            assert len(arm["accuracy"]["seeds"]) == len(found["settings"]["seeds"])
            assert (arm["gain"] is None) == (arm["group"] != "with generated")
    assert heard[0].startswith("at most ")
    assert "trainings of a network" in heard[1]


@pytest.mark.parametrize("name", ["noise", "collapsed"])
def test_senseless_images_can_be_evaluated(name):
    found = evaluated(source(name))
    json.dumps(found, allow_nan=False)
    assert found["results"]["held_out"]["verdict"]["word"] in WORDS


def single(labelled: Labelled, count: int) -> Labelled:
    """So many images of each user."""
    rows = [(labelled.users == user).nonzero().flatten()[:count] for user in labelled.users.unique()]
    return labelled.of(torch.cat(rows))


def black(labelled: Labelled) -> Labelled:
    return Labelled(torch.zeros_like(labelled.images), labelled.users)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"generated": single(m.generated, 1)},
        lambda m: {"generated": m.generated.of(torch.tensor([0]))},
        lambda m: {"generated": black(m.generated)},
        lambda m: {"training": single(m.training, 1), "reconstructed": single(m.training, 1),
                   "training_recordings": m.training_recordings[::10]},
        lambda m: {"training": black(m.training), "reconstructed": black(m.training)},
    ],
    ids=["one of each", "one in all", "black", "one training image of each", "black training images"],
)  # fmt: skip
def test_next_to_nothing_can_be_evaluated(change):
    material = source()
    found = evaluated(replace(material, **change(material)))
    json.dumps(found, allow_nan=False)
    assert found["results"]["held_out"]["verdict"]["word"] in WORDS


def test_one_held_out_recording_of_each_user_can_be_evaluated():
    material = source()
    rows = (torch.arange(80) // 10) % 2 == 0
    images, shown = material.held_out.images.of(rows), torch.arange(40)
    out = Unseen(images, material.held_out.recordings[rows])
    found = evaluated(replace(material, held_out=out, held_out_shown=shown, held_out_reconstructed=images))
    assert all(torch.tensor(numbers(found)).isfinite())
    assert found["distances"] == []
    assert found["coverage"] is None


def test_the_number_of_steps_is_that_of_the_slower_kind_of_training(monkeypatch):
    asked = []

    def search(one, training, augmented, seed):
        asked.append(augmented)
        return 7 if augmented else 5

    monkeypatch.setattr(network, "enough_steps", search)
    judged = run_trials(source(), True, 0, CPU, lambda _: None)
    assert sorted(asked) == [False, True]
    assert judged.steps == 7
