"""The augmented data set: what lies in the folder, what the manifest says of it, and when it is refused."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.test_readme import python_of
from tests.tiny import PATH, USERS, make_images
from train import augment, evaluate, ldm, sample, vae
from train.base.errors import UserError
from train.judge import evaluation, purpose
from train.judge.augmented import Judge, Seen
from train.stages import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data/, a VAE run in v/ and an LDM run in l/."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_images(folder / "data")
    (data / "ID2/3.png").rename(data / "ID2/generated_001.png")
    common = ["--config", str(PATH), "--data_dir", str(data), "--num_epochs", "1"]
    vae.main([*common, "--output_dir", str(folder / "v")])
    ldm.main([*common, "--output_dir", str(folder / "l"), "--vae_path", str(folder / "v/final_model")])
    return folder


@pytest.fixture
def model(trained, tmp_path) -> Path:
    """A copy of the model, beside which nothing has been made."""
    return shutil.copytree(trained / "l/final_model", tmp_path / "l/final_model")


@pytest.fixture(autouse=True)
def _no_search_for_the_sampling(monkeypatch) -> None:
    """tests/judge/test_purpose.py has it; here it finds that of the config, and mixing."""
    monkeypatch.setattr(
        purpose, "choose_now", lambda model, config, *_: {"guidance": config.sampling.guidance, "mix_above": 3.0}
    )


@pytest.fixture
def _unsure_judge(monkeypatch) -> None:
    """Gives the first two images of everybody to somebody else, all of ID10, and accuses ID2's third of copying."""

    asked = Counter()

    def look(self, made):
        for user, image in zip(made.users.tolist(), made.images.float(), strict=True):
            number, asked[user] = asked[user], asked[user] + 1
            wrong = user == 2 or number < 2
            yield Seen(0.3 if wrong else 0.6, 0.4, 1.0, user == 1 and number == 2, image.flatten())

    monkeypatch.setattr(Judge, "__call__", look)


def run(model: Path, *more: str, number: int = 2) -> Path:
    """The folder that was made."""
    augment.main(["--model", str(model), "--per_user", str(number), "--steps", "2", *more])
    (folder,) = (model.parent / "augmented").iterdir()
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if "/" in name}


def test_it_holds_what_trained_and_what_sample_makes(trained, model, tmp_path):
    """Nothing that is held out; a real image that has a generated one's name has another."""
    found = images(run(model))
    same = ["--model", str(model), "--purpose", "augment", "--num_images", "2", "--steps", "2"]
    sample.main([*same, "--output_dir", str(tmp_path / "made")])
    split = json.loads((model / "split.json").read_text())
    real = {name: (trained / "data" / name).read_bytes() for name in split["train"] + split["validation"]}
    if "ID2/generated_001.png" in real:
        real["ID2/real_generated_001.png"] = real.pop("ID2/generated_001.png")
    assert len(real) == 18
    assert found == real | images(tmp_path / "made")


def test_the_manifest_lists_every_image_and_nothing_else(model):
    folder = run(model, "--seed", "3", "--guidance", "2")
    rows = table(folder / "manifest.csv")
    assert {row["file"] for row in rows} == set(images(folder))
    for row in rows:
        assert row["file"].startswith(row["user"] + "/")
        real = row["kind"] == "real"
        assert real != ("/generated_" in row["file"])
        settings = [row[name] for name in ("seed", "sampler", "steps", "guidance", "mix_above")]
        assert settings == ([""] * 5 if real else ["3", "dpm", "2", "2.0", ""])
        assert real or 0 <= float(row["probability"]) <= 1
        assert real or 0 <= float(row["nearest_distance"]) <= 2
        assert row["copy"] in (("",) if real else ("yes", "no"))


def test_without_a_number_there_are_as_many_as_real_ones(model):
    folder = run(model)
    augment.main(["--model", str(model), "--steps", "2"])
    (other,) = set((model.parent / "augmented").iterdir()) - {folder}
    for user in USERS:
        assert len(list((other / user).glob("generated_*"))) == 6


def test_images_are_links_and_what_is_there_is_not_made_again(trained, model, monkeypatch):
    folder = run(model)
    made = next((model.parent / "generated").iterdir())
    assert (folder / "ID1/generated_000.png").samefile(made / "ID1/generated_000.png")
    path = next(path for path in (folder / "ID1").iterdir() if path.name[0].isdigit())
    assert path.samefile(trained / "data/ID1" / path.name)
    before = contents(folder)
    (folder / "ID1/generated_000.png").unlink()
    monkeypatch.setattr(generate, "generate", None)
    run(model)
    assert contents(folder) == before


def test_another_origin_is_refused_and_nothing_changed(trained, model, tmp_path):
    out = ["--output_dir", str(tmp_path / "out")]
    one = ["--model", str(model), "--steps", "2", *out]
    augment.main([*one, "--per_user", "1"])
    before = contents(tmp_path)
    data = shutil.copytree(trained / "data", tmp_path.with_name("changed"), dirs_exist_ok=True)
    trains = json.loads((model / "split.json").read_text())["train"][0]
    shutil.copy(trained / "data/ID10/0.png" if trains != "ID10/0.png" else trained / "data/ID10/1.png", data / trains)
    for more, said in (
        (["--per_user", "2"], "holds images of other per_user; give another --output_dir"),
        (["--per_user", "1", "--seed", "1"], "holds images of other seed; give another"),
        (["--per_user", "1", "--sift"], "holds images of other sift; give another"),
        (["--per_user", "1", "--data_dir", str(data)], "holds images of other real_images; give another"),
    ):
        with pytest.raises(UserError, match=said):
            augment.main([*one, *more])
    with pytest.raises(UserError, match="nor one of generated images"):
        sample.main(one)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--per_user", "0"], "--per_user 0: must be at least 1"),
        (["--per_user", "100001"], "--per_user 100001: must be at most 100000; take several seeds for more"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--model", "nowhere"], "nowhere: there is no trained LDM here"),
        (["--output_dir", "{data}/new"], "lies within data.dir .* where it would count as a user"),
        (["--output_dir", "{data}"], "lies within data.dir"),
        (["--images", "{data}/new"], "lies within data.dir"),
        (["--images", "x", "--output_dir", "x/y"], "lie in each other"),
        (["--data_dir", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(trained, model, tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path), contents(trained)
    with pytest.raises(UserError, match=said):
        augment.main(["--model", str(model), *(word.format(data=trained / "data") for word in more)])
    assert (contents(tmp_path), contents(trained)) == before


@pytest.mark.usefixtures("_unsure_judge")
def test_sifting_makes_others_and_says_what_is_left_out(model, capsys):
    folder = run(model, "--sift", number=4)
    kept, out = table(folder / "manifest.csv"), table(folder / "left_out.csv")
    assert {row["file"] for row in kept} == set(images(folder))
    generated = [row for row in kept if row["kind"] == "generated"]
    assert {user: sum(row["user"] == user for row in generated) for user in USERS} == {"ID1": 4, "ID2": 4, "ID10": 0}
    assert Counter((row["user"], row["why"]) for row in out) == {
        ("ID1", "somebody else"): 2, ("ID2", "somebody else"): 2, ("ID2", "copy"): 1, ("ID10", "somebody else"): 8,
        ("ID1", "enough without it"): 2, ("ID2", "enough without it"): 1,
    }  # fmt: skip
    assert not {row["file"] for row in out} & {row["file"] for row in kept}
    said = capsys.readouterr().out
    assert "fewer than 4 are left of ID10 (0), since 8 of a user are made at most" in said
    assert f"and {len(generated)} generated of 3 users" in said


def test_where_sifting_leaves_nothing_no_evaluation_is_suggested(model, monkeypatch, capsys):
    nobody = Seen(0.3, 0.4, 1.0, False, torch.zeros(1))
    monkeypatch.setattr(Judge, "__call__", lambda _, made: [nobody] * len(made))
    folder = run(model, "--sift")
    assert {row["kind"] for row in table(folder / "manifest.csv")} == {"real"}
    said = capsys.readouterr().out
    assert "18 real images and 0 generated of 3 users" in said
    assert "train.evaluate" not in said


@pytest.mark.usefixtures("short_judgement")
def test_evaluate_says_whether_sifting_helps_where_that_is_sure(model, monkeypatch, capsys):
    folder = run(model)
    judge = ["--model", str(model), "--images", str(folder), "--quick"]
    found = []
    judge_all = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *given: found.append(judge_all(*given)) or found[0])
    evaluate.main(judge)
    assert found[0]["results"]["held_out"]["sifting"] is None
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: found[0])
    for word, sure in (("helps", True), ("does harm", True), ("makes no difference", False), ("cannot be told", False)):
        (folder / "evaluation.json").unlink()
        found[0]["results"]["held_out"]["sifting"] = {"word": word, "sentence": f"sifting {word}: who knows"}
        capsys.readouterr()
        evaluate.main(judge)
        assert (f"\nsifting {word}: who knows\n" in capsys.readouterr().out) == sure
        assert f"Sifting {word}: who knows." in (folder / "report.html").read_text()


@pytest.mark.usefixtures("short_judgement")
def test_the_report_comes_along_and_an_own_one_stays(model, capsys):
    folder = run(model)
    assert f"python -m train.evaluate --model {model} --images {folder}" in capsys.readouterr().out
    (made,) = (model.parent / "generated").iterdir()
    evaluate.main(["--model", str(model), "--images", str(made), "--quick"])
    run(model)
    sentence = json.loads((made / "evaluation.json").read_text())["verdict"]["held_out"]
    assert f"the judge, of 6 generated images: {sentence}" in capsys.readouterr().out
    assert (folder / "report.html").read_bytes() == (made / "report.html").read_bytes()
    evaluate.main(["--model", str(model), "--images", str(folder), "--quick"])
    own = json.loads((folder / "evaluation.json").read_text())
    assert own["images"] == str(folder)
    assert own["data"]["generated_images"] == 6  # and none of the real ones
    run(model)
    assert json.loads((folder / "evaluation.json").read_text()) == own


def test_two_processes_make_the_same_files(model, tmp_path):
    arguments = ["--model", str(model), "--per_user", "3", "--steps", "2", "--guidance", "2", "--sift"]
    augment.main([*arguments, "--output_dir", str(tmp_path / "one"), "--images", str(tmp_path / "made")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [*command, "train.augment", *arguments, "--output_dir", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.count("and manifest.csv lists it") == 1


def test_the_readme_trains_a_classifier_on_it(model):
    folder = run(model)
    source = python_of("Take the data set home")
    source = source.replace("runs/demo/ldm/augmented/NAME", str(folder))
    assert str(folder) in source
    names: dict = {}
    exec(source.replace("range(20)", "range(1)"), names)
    assert names["users"] == sorted(USERS)
    assert len(names["data"]) == 24
