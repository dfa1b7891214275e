"""The report: one HTML page that needs nothing else. The answer comes first, then why, then all that it rests on.

It shows what `evaluate` found, and pictures by name: "images" (real, reconstructed and generated ones) and, where there
are any, "copies" (the closest pairs).
"""

from PIL import Image

from train.base.markup import Markup, element, joined
from train.base.page import page
from train.judge import report_images, report_results
from train.judge.charts import gain_gauge
from train.judge.figures import sentence
from train.judge.report_method import method
from train.judge.report_results import SETS

ANSWERS = {
    "helps": ("helps", "The generated images help."),
    "does harm": ("harms", "The generated images do harm."),
    "makes no difference that could be seen": ("equal", "The generated images make no difference that could be seen."),
    "cannot be told": ("unknown", "Whether the generated images help cannot be told."),
}
"""The class and the headline of each word of the verdict."""


def report(evaluation: dict, pictures: dict[str, Image.Image]) -> str:
    """The page as HTML."""
    results = evaluation["results"]
    titles = {judge["name"]: judge["title"] for judge in evaluation["judges"]}
    parts = {
        "judges": ("Who judged", report_results.judges(results, titles)),
        "why": ("Why, and what to try next", report_results.why(results)),
        "images": ("The images", report_images.images(pictures["images"])),
        "arms": ("Does training with them help?", report_results.arms(results, titles, evaluation["settings"])),
        "worth": ("What the images are worth", "" if evaluation["quick"] else report_results.worth(results, titles)),
        "users": ("Who gains, who loses", report_results.users(results)),
        "right-person": ("The right person?", report_images.right_person(evaluation)),
        "vae": ("What the VAE loses", report_images.vae(evaluation, titles)),
        "distances": ("As near and as varied as real ones?", report_images.distances(evaluation)),
        "copies": ("Copies?", report_images.copies(evaluation["copies"], pictures.get("copies"))),
        "method": ("How every figure came about", method(evaluation, titles)),
    }
    there = {key: (heading, content) for key, (heading, content) in parts.items() if content}
    links = joined(element("a", heading, href=f"#{key}") for key, (heading, _) in there.items())
    sections = joined(element("section", element("h2", h), content, id=key) for key, (h, content) in there.items())
    nav = element("nav", links, aria_label="Parts of this page")
    title = f"Does a classifier get better with these images? {evaluation['model']}"
    return page(title, header(evaluation, results), nav, element("main", sections))


def header(evaluation: dict, results: dict[str, dict]) -> Markup:
    """What was judged, and the verdicts."""
    data = evaluation["data"]
    held_out = f"{data['held_out_images']:,} images of {data['held_out_recordings']:,} recordings"
    tests = {"held_out": f"{held_out} that nothing was trained on"}
    if evaluation["test_dir"]:
        folder = element("code", evaluation["test_dir"])
        tests["test_dir"] = joined([f"{data['test_images']:,} images in ", folder])
    about = [
        f"{data['generated_images']:,} generated images of {len(data['users'])} people, made by ",
        element("code", evaluation["model"]),
        f", beside {data['training_images']:,} real training images.",
        " A quick run: fewer seeds and arms, and so wider intervals." if evaluation["quick"] else "",
    ]
    gains = [found["verdict"]["gain"] for found in results.values() if found["verdict"]["gain"]]
    verdicts = (verdict(SETS[key], tests[key], found["verdict"], gains) for key, found in results.items())
    return element(
        "header",
        element("h1", "Does a classifier get better with these images?"),
        element("p", *about, class_="about"),
        element("div", *verdicts, class_="verdicts"),
        id="verdict",
    )


def verdict(where: str, tests: object, found: dict, gains: list[dict]) -> Markup:
    """The answer for one set of test images; `gains` are those of all sets, shown on one scale."""
    class_, headline = ANSWERS[found["word"]]
    return element(
        "article",
        element("p", element("strong", where), ": ", tests, class_="where"),
        element("p", headline, class_="headline"),
        gain_gauge(found["gain"], gains) if found["gain"] else "",
        element("p", sentence(found["sentence"].removeprefix(f"{found['word']}: ")), class_="sentence"),
        class_=f"verdict {class_}",
    )
