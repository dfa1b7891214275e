"""The report's page: it is whole, loads nothing, trusts no name, and says what the evaluation says."""

import copy
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from tests.judge.sample_evaluation import sample_evaluation, sample_pictures
from tests.tiny import tiny, tiny_vae
from train.judge import arms, evaluation, material, network
from train.judge.labelled import Labelled
from train.judge.pictures import closest_copies, side_by_side
from train.judge.report import report

CPU = torch.device("cpu")
USERS, RECORDINGS, IMAGES = 4, 2, 5  # of a tiny evaluation: recordings of each user, images of each recording

HOSTILE = [
    '<script>alert("x")</script>', "\"'><img src=http://x.example/a.png>", "a" * 300, "\u202eevil\u202c", "שלום",
    "🚶" * 20,
    "</svg></style><style>@import url(//x.example)", "&amp;", "line\nbreak\x00", "url(https://x.example)", "-1 & <b>",
]  # fmt: skip
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a page consists of; it must be well-formed: each element ends, in the order in which they began."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.elements, self.texts, self.rows, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), tag
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.replace("\u00a0", " ")
        self.texts.append((self.open[-1] if self.open else None, data))
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag not in ("style", "title"))


def striped(seed):
    """Images of every user: noisy stripes, as many as the user's number, and the numbers of their recordings."""
    rng = torch.Generator().manual_seed(seed)
    users = torch.arange(USERS).repeat_interleave(RECORDINGS * IMAGES)
    recordings = torch.arange(USERS * RECORDINGS).repeat_interleave(IMAGES)
    phase = torch.rand(len(users), 1, 1, 1, generator=rng)
    x = torch.sin(2 * torch.pi * ((1 + users[:, None, None, None]) * torch.arange(16) / 16 + phase))
    noise = torch.randn(len(users), 3, 16, 16, generator=rng)
    return Labelled((128 + 60 * x + 30 * noise).clamp(0, 255).to(torch.uint8), users), recordings


def tiny_material(vae):
    """With twice as many generated images as there are real ones."""
    (training, recordings), (out, others), (made, _), (other, changed), (more, _) = map(striped, range(5))
    made = made.with_more(more)
    files, made_files = (
        [f"ID{user}/{row}.png" for row, user in enumerate(one.users.tolist())] for one in (training, made)
    )
    shown = torch.arange(len(out))
    decoded, held_out = (material.reconstructed(vae, real, CPU) for real in (training, out))
    return material.Material(
        [f"ID{user}" for user in range(USERS)], training, recordings, files, decoded, made, made_files,
        material.TestSet(out, others), shown, held_out, material.TestSet(other, changed),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "quick"])
def measured(request):
    """What `evaluate` finds of a tiny material, with what train.evaluate adds; and its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in [
            (network, "MOST_STEPS", 8), (network, "LEAST_STEPS", 8), (arms, "TIMES", (0.5, 1.0)),
            (evaluation, "SEEDS", 2), (evaluation, "QUICK_SEEDS", 2),
        ]:  # fmt: skip
            patch.setattr(module, name, value)
        vae = tiny_vae(tiny())
        tiny_one = tiny_material(vae)
        found = evaluation.evaluate(tiny_one, vae, [0.3, 0.2], request.param, 0, CPU, print)
    pictures = {"images": side_by_side(tiny_one), "copies": closest_copies(tiny_one, found["copies"]["pairs"])}
    verdicts = {name: result["verdict"]["sentence"] for name, result in found["results"].items()}
    added = {"verdict": verdicts, "model": "m", "images": "i", "test_dir": "t"}
    return added | json.loads(json.dumps(found)), pictures


@pytest.fixture(scope="module")
def sample():
    return sample_evaluation()


@pytest.fixture(scope="module")
def html(sample):
    return report(sample, sample_pictures())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def written(figure, sign=""):
    """A figure as the page has it, by a rule of its own: with one decimal, in percent or, with the sign, points."""
    mean, low, high = (format(round(100 * figure[key], 1) + 0.0, f"{sign}.1f") for key in ("mean", "low", "high"))
    mean, low, high = (re.sub(r"^\+0\.0$", "0.0", each).replace("-", "−") for each in (mean, low, high))  # noqa: RUF001
    return f"{mean}{'' if sign else '%'} [{low}, {high}]"


def kinds(value, path=""):
    """The paths of keys within a value, and the type of what is there."""
    if isinstance(value, dict):
        return {pair for key, inner in value.items() for pair in kinds(inner, f"{path}.{key}")} | {(path, dict)}
    if isinstance(value, list):
        return {pair for inner in value for pair in kinds(inner, f"{path}[]")} | {(path, list)}
    return {(path, type(value))}


def test_the_sample_is_of_the_kind_that_an_evaluation_is(measured):
    """Where one of both has nothing (None), the other may have anything."""
    found, _ = measured
    real, made_up = kinds(found), kinds(sample_evaluation(quick=found["quick"]))
    nothing = {path for path, kind in real ^ made_up if kind is type(None)}
    assert nothing <= {
        f".results.{name}{path}" for name in ("held_out", "test_dir")
        for path in (".verdict.gain", ".worth[].times", ".users[].right_person", ".sifting.gain", ".sifting.judge")
    }  # fmt: skip
    assert [(path, kind) for path, kind in real ^ made_up if not path.startswith(tuple(nothing))] == []


def test_a_tiny_evaluation_has_its_report(measured):
    found, pictures = measured
    page = Page(report(found, pictures))
    assert ("worth" in page.ids) == (not found["quick"])
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 2
    for result in found["results"].values():
        assert all(any(row[0] == arm["name"] for row in page.rows) for arm in result["arms"])


def test_the_page_doubts_a_judge_that_sees_little(sample):
    doubted = sample | {"sight": {"network": {"blind": False, "doubts": "it is wrong about most"}}}
    assert "But it is wrong about most." in report(doubted, sample_pictures())
    assert "wrong about most" not in report(sample, sample_pictures())


def test_the_weakest_are_named_with_how_few_images_they_have(sample):
    weakest = {"users": ["ID2", "ID6"]} | {key: {"mean": 0.8, "low": 0.7, "high": 0.9} for key in (
        "real", "with_generated", "gain")}  # fmt: skip
    users = [user | {"images": 5} for user in sample["results"]["held_out"]["users"]]
    result = sample["results"]["held_out"] | {"weakest_quarter": weakest, "users": users}
    page = report(sample | {"results": {"held_out": result}}, sample_pictures())
    assert "Recognised least without them (ID2, ID6)" in page
    assert "Each has 5 test images, so that one image recognised more or less is 20.0% of them." in page


def test_every_id_is_unique_and_every_anchor_leads_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(targets) == 11
    assert {target.removeprefix("#") for target in targets} <= set(page.ids)


def loads(html):
    """All that a browser could be made to load or run by this page."""
    page = Page(html)
    styles = " ".join(data for tag, data in page.texts if tag == "style")
    found = [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "embed", "use", "image")]
    for tag, attributes in page.elements:
        found += [f"{tag} {name}" for name in attributes if name.startswith("on") or name in ("srcset", "xlink:href")]
        found += [attributes["src"]] if not attributes.get("src", "data:image/png").startswith("data:image/png") else []
        found += [attributes["href"]] if not attributes.get("href", "#").startswith("#") else []
        found += [attributes["style"]] if "url" in attributes.get("style", "") else []
    return found + re.findall(r"url\(|@import", styles)


def test_the_page_loads_nothing_and_runs_nothing(html):
    assert loads(html) == []
    assert "http://" not in html
    assert "https://" not in html


def test_hostile_names_are_words_and_nothing_else(sample):
    hostile = sample_evaluation([f"{name}{i}" for i, name in enumerate(HOSTILE)])
    for key in ("model", "images", "test_dir"):
        hostile[key] = "".join(HOSTILE)
    hostile["settings"] |= {HOSTILE[0]: HOSTILE[1], HOSTILE[6]: {HOSTILE[1]: HOSTILE}}
    html = report(hostile, sample_pictures())
    assert loads(html) == []
    plain = Page(report(sample_evaluation([f"ID{i}" for i in range(len(HOSTILE))]), sample_pictures()))
    page = Page(html)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert "\x00" not in html
    for i, name in enumerate(HOSTILE):
        assert f"{name}{i}".replace("\n", "\\n").replace("\x00", "\\x00") in page.text()


def test_both_verdicts_come_before_everything_else(page, sample):
    words = page.text()
    held_out, other = (sample["results"][key]["verdict"] for key in ("held_out", "test_dir"))
    first = words.index("The generated images help.")
    second = words.index("The generated images make no difference that could be seen.")
    assert first < second < words.index("Who judged")
    for verdict in (held_out, other):
        assert written(verdict["gain"], "+") in words.replace(" points", "")


@pytest.mark.parametrize("word", ["helps", "does harm", "makes no difference that could be seen", "cannot be told"])
def test_each_verdict_has_its_headline(sample, word):
    changed = copy.deepcopy(sample)
    changed["results"]["held_out"]["verdict"] |= {"word": word, "gain": None, "sentence": f"{word}: for a reason"}
    words = Page(report(changed, sample_pictures())).text()
    shown = {"helps": "images help.", "does harm": "do harm.", "cannot be told": "help cannot be told."}
    assert shown.get(word, "no difference that could be seen.") in words.split("Who judged")[0]
    assert "For a reason." in words


def test_every_arm_of_the_evaluation_stands_in_a_table(page, sample):
    """Its accuracy and its gain, at equal steps and at equal exposure, for both judges and sets of images."""
    rows = ["|".join(row) for row in page.rows]
    for result in sample["results"].values():
        for arm in result["arms"]:
            gain = written(arm["gain"], "+") if arm["gain"] else "–"  # noqa: RUF001
            wanted = re.compile(rf"\|{re.escape(written(arm['accuracy']))}(best with(out)?)?\|{re.escape(gain)}")
            assert any(row.startswith(arm["name"]) and wanted.search(row) for row in rows), (arm["name"], wanted)
            seeds = "  ".join(f"{100 * value:.1f}%" for value in arm["accuracy"]["seeds"])
            assert any(row.startswith(arm["name"]) and row.endswith(seeds) for row in rows)


def test_every_other_number_stands_in_a_table_too(page, sample):
    rows = ["|".join(row) for row in page.rows]
    for result in sample["results"].values():
        for point in result["learning_curve"]:
            assert f"{100 * point['share']:.1f}%|{point['images']}|{written(point['accuracy'])}" in rows
        for user in result["users"]:
            real, mixed = (f"{100 * user[key]:.1f}%" for key in ("real", "with_generated"))
            right = "–" if user["right_person"] is None else f"{100 * user['right_person']:.1f}%"  # noqa: RUF001
            wanted = f"{user['name']}|{user['images']}|{real}|{mixed}|"
            assert any(row.startswith(wanted) and row.endswith(f"|{right}") for row in rows)
    for band in sample["fidelity"]["power"]:
        assert any(row.endswith(f"|{band['reconstructed']:.2f}|{band['generated']:.2f}") for row in rows)
    for figures in sample["reconstructions"].values():
        assert any(row.endswith("|".join(written(figure) for figure in figures.values())) for row in rows)
    for distance in sample["distances"]:
        wanted = f"{distance['name']}|{distance['space']}|{distance['of']}|{distance['value']:.3g}|".replace("-", "−")  # noqa: RUF001
        assert any(row.startswith(wanted) for row in rows)
    for pair in sample["copies"]["pairs"]:
        assert f"{pair['generated']}|{pair['training']}|{pair['distance']:.3g}|{pair['ratio']:.2f}" in "\n".join(rows)


def test_every_chart_has_words_for_those_who_do_not_see_it(page):
    drawn = [attributes for tag, attributes in page.elements if tag == "svg" and "aria-hidden" not in attributes]
    assert len(drawn) == 14  # 2 gauges, 4 interval plots, 4 learning curves, 2 gains, a confusion matrix, powers
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in drawn)
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")


def test_a_run_may_lack_conditions_copies_distances_and_verdict(sample):
    """What a quick run can be without, when no judge may judge."""
    bare = sample_evaluation(quick=True) | {"test_dir": None}
    bare["data"]["test_images"] = None
    bare["copies"]["pairs"] = []
    bare |= {"distances": [], "coverage": None, "variety": None}
    result = bare["results"]["held_out"]
    result["verdict"] |= {"word": "cannot be told", "gain": None, "sentence": "cannot be told: for a reason"}
    result["judges"] = [judge | {"word": "cannot be told", "may_judge": False} for judge in result["judges"]]
    result["advice"] = []
    bare["results"] = {"held_out": result}
    page = Page(report(bare, {"images": sample_pictures()["images"]}))
    words = page.text()
    assert "Under other conditions" not in words
    assert "What the images are worth" not in words
    assert "neither may judge" in words
    assert "two held-out recordings of most people" in words
    assert "A quick run" in words


@pytest.mark.parametrize("count", [2, 31, 32, 150])
def test_any_number_of_users_has_a_page(count):
    names = [f"person {i}" for i in range(count)]
    page = Page(report(sample_evaluation(names), sample_pictures()))
    (label,) = [a["aria-label"] for tag, a in page.elements if "Confusion" in a.get("aria-label", "")]
    assert f"matrix of {min(count, 31)} users" in label
    by_user = itertools.groupby(sorted(row[0] for row in page.rows if row[0].startswith("person ")))
    assert {name for name, rows in by_user if len(list(rows)) >= 2} == set(names)
