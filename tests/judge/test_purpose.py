"""The sampling for a classifier: judges who know the training recordings only choose it, once for a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.judge.cases import noise, recorded, resampled, shuffled
from tests.tiny import PATH, make_images
from train import augment, evaluate, ldm, sample, vae
from train.base.errors import UserError
from train.config.sections import GenerationConfig
from train.judge import purpose
from train.judge.purpose import Tried, best, most_mixed, try_out

REAL, RECORDINGS = recorded(range(1, 5), 2, 32, 0)
NEW, _ = recorded(range(1, 5), 2, 32, 1)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_guidance_whose_images_teach_the_users_is_chosen():
    made = {GenerationConfig(guidance=scale): images for scale, images in (
        (1, noise(REAL, NEW, rng())), (2, resampled(REAL, NEW, rng())), (3, shuffled(REAL, REAL, rng())))}  # fmt: skip
    tried = try_out(made, REAL, 4, torch.device("cpu"))
    assert [one.sampling.guidance for one in tried] == [1, 2, 3]
    assert tried[1].accuracy > 0.8 > 0.6 > max(tried[0].accuracy, tried[2].accuracy)
    assert best(tried, RECORDINGS).sampling.guidance == 2


def right(share: float) -> torch.Tensor:
    return (torch.linspace(0, 1, 80)[torch.randperm(80, generator=rng())] < share).double().expand(2, 80)


@pytest.mark.parametrize(("accuracies", "chosen"), [((0.5, 0.5, 0.5), 1), ((0.5, 0.9, 0.92), 1.5), ((0.8, 0.5, 0), 1)])
def test_of_those_that_are_about_the_same_the_smallest_is_chosen(accuracies, chosen):
    scales = (1, 1.5, 2)
    tried = [Tried(GenerationConfig(guidance=s), right(share)) for s, share in zip(scales, accuracies, strict=True)]
    assert best(tried[::-1], torch.arange(80) // 10).sampling.guidance == chosen


@pytest.mark.parametrize(("accuracies", "chosen"), [((0.8, 0.9), 3), ((0.7, 0.8), 4.5), ((0.7, 0.7), None)])
def test_the_most_mixing_is_chosen_that_leaves_the_users_apart(accuracies, chosen):
    """Nine tenths of an accuracy of 80% are 72%."""
    plain = Tried(GenerationConfig(), right(0.8))
    mixed = [Tried(GenerationConfig(mix_above=level), right(share))
             for level, share in zip((3, 4.5), accuracies, strict=True)]  # fmt: skip
    assert most_mixed(plain, mixed).sampling.mix_above == chosen


# ---- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    common = ["--config", str(PATH), "--data_dir", str(make_images(folder / "data")), "--num_epochs", "1"]
    vae.main([*common, "--output_dir", str(folder / "v")])
    ldm.main([*common, "--output_dir", str(folder / "l"), "--vae_path", str(folder / "v/final_model")])
    return folder / "l/final_model"


@pytest.fixture
def model(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "l/final_model")


@pytest.fixture
def times_chosen(monkeypatch) -> list[float]:
    """Of each choice, how many images judges were asked about; they choose guidance 3, and mixing above 4.5."""
    asked = []

    def fake(made, real, num_users, device):
        if all(sampling.mix_above is None for sampling in made):
            asked.append(len(real))
        good = [sampling.guidance == 3 and sampling.mix_above != 3 for sampling in made]
        return [Tried(one, torch.full((2, len(real)), float(is_good))) for one, is_good in zip(made, good, strict=True)]

    monkeypatch.setattr(purpose, "try_out", fake)
    return asked


def guidances(model: Path) -> list[float]:
    settings = [json.loads(path.read_text()) for path in model.parent.glob("generated/*/settings.json")]
    return sorted(one["sampling"]["guidance"] for one in settings)


def mixings(model: Path) -> dict[float, float | None]:
    """By guidance."""
    settings = [json.loads(path.read_text())["sampling"] for path in model.parent.glob("generated/*/settings.json")]
    return {one["guidance"]: one["mix_above"] for one in settings}


def make(model: Path, *more: str) -> None:
    sample.main(["--model", str(model), "--num_images", "1", "--steps", "2", *more])


def test_it_is_chosen_once_and_only_for_a_classifier(model, times_chosen, capsys):
    make(model)
    assert (guidances(model), times_chosen) == ([1.5], [])
    for _ in range(2):
        make(model, "--purpose", "augment")
    assert (guidances(model), len(times_chosen)) == ([1.5, 3.0], 1)
    assert capsys.readouterr().out.count("guidance 3 and mixing above 4.5 serve a classifier") == 1
    augment.main(["--model", str(model), "--per_user", "1", "--steps", "2"])
    assert len(times_chosen) == 1
    assert json.loads(next(model.parent.glob("augmented/*/augmented.json")).read_text())["sampling"]["guidance"] == 3


def test_judges_that_recognise_nobody_are_not_believed(model, monkeypatch, capsys):
    def fake(made, real, num_users, device):
        right = (torch.arange(len(real)) % num_users == 0).expand(2, -1)  # by chance
        return [Tried(sampling, right.double()) for sampling in made]

    monkeypatch.setattr(purpose, "try_out", fake)
    make(model, "--purpose", "augment")
    said = capsys.readouterr().out
    assert "guidance 1 is taken, the smallest" in said
    assert "they can tell nothing about guidance" in said
    assert "serve a classifier" not in said
    assert mixings(model) == {1: None}


def test_whoever_names_a_guidance_gets_it(model, times_chosen):
    make(model, "--purpose", "augment", "--guidance", "1.25")
    make(model, "--purpose", "augment", "--set", "sampling.guidance=1.75")
    assert (guidances(model), times_chosen) == ([1.25, 1.75], [])


def test_images_for_a_classifier_are_mixed_and_those_to_look_at_are_not(model, times_chosen):
    make(model)
    make(model, "--purpose", "augment")
    make(model, "--purpose", "augment", "--guidance", "1.25", "--set", "sampling.mix_above=5")
    make(model, "--purpose", "augment", "--guidance", "1.75")
    assert mixings(model) == {1.5: None, 3.0: 4.5, 1.25: 5, 1.75: None}


def test_the_choice_is_of_this_model_and_this_sampler_alone(model, times_chosen):
    make(model, "--purpose", "augment")
    path = model.parent / purpose.NAME
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"of": kept["of"] | {"weights": "those of another model"}}))
    make(model, "--purpose", "augment", "--num_images", "2")
    make(model, "--purpose", "augment", "--sampler", "ddim")
    assert len(times_chosen) == 3


def test_what_is_held_out_has_no_say(model, times_chosen, trained):
    split = json.loads((model / "split.json").read_text())
    make(model, "--purpose", "augment")
    held_out = len(split["held_out"])
    images = len(list((trained.parents[1] / "data").glob("*/*")))
    assert held_out > 0
    assert times_chosen == [images - held_out]


def test_the_images_for_a_classifier_are_those_that_are_judged(model, times_chosen):
    make(model)
    make(model, "--purpose", "augment")
    shutil.rmtree(next(path for path in model.parent.glob("generated/*guidance3*")))
    with pytest.raises(UserError, match=r"guidance3_seed0_\w+: this model's images are not there yet; .*augment$"):
        evaluate.main(["--model", str(model), "--set", "sampling.steps=2"])
