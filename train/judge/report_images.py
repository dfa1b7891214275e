"""Parts of the report on the images themselves: who is in them, what the VAE loses, distances, copies."""

from PIL import Image

from train.base.markup import Markup, element, joined, lead, name_of, note, scrolling, table
from train.base.page import picture
from train.base.units import counted
from train.judge.charts import MOST_USERS, heat_map, power_chart
from train.judge.distances import HALVINGS
from train.judge.figures import interval, number, of, percent

MOST_ROWS = 40  # of a table of confusions


def images(shown: Image.Image) -> Markup:
    question = "Do the generated images look like the real ones?"
    words = "Real images that nothing was trained on, the same as the VAE reconstructs them, and generated images."
    asked = lead(question, "Look for yourself: what the eye sees is not yet what a classifier can use.")
    return joined([asked, picture(shown, words)])


# ---- who is in them


def right_person(evaluation: dict) -> Markup:
    found = evaluation["right_person"]
    kinds = {"held_out": "held-out real images", "reconstructed": "reconstructions", "generated": "generated images"}
    answer = (
        f"A network trained on real images recognises that person in {interval(found['generated'])} of the generated "
        f"images, and in {interval(found['held_out'])} of held-out real images."
    )
    doubt = evaluation["sight"]["network"]["doubts"]
    answers = [answer, f"But {doubt}."] if doubt else [answer]
    rows = [(words, interval(found[key])) for key, words in kinds.items()]
    explained = (
        "An image that is easily recognised need not be of use: generated images can be more typical of a person than "
        "real ones are, and teach little. So this is no verdict."
    )
    return joined([
        lead("Does a generated image show the person that was asked for?", *answers),
        table("Recognised as the right person", ["images", "share"], rows),
        *confusions(evaluation["data"]["users"], found["confusion"]),
        note(explained),
    ])  # fmt: skip


def confusions(names: list[str], confusion: list[list[int]]) -> list[Markup]:
    """The heat map, and below it the numbers of who is taken for whom."""
    count = len(names)
    wrong = sorted(
        ((n, asked, seen) for asked, row in enumerate(confusion) for seen, n in enumerate(row) if n and asked != seen),
        key=lambda entry: (-entry[0] / sum(confusion[entry[1]]), entry[1:]),
    )
    rows = [(name_of(names[asked]), name_of(names[seen]), of(n, sum(confusion[asked]))) for n, asked, seen in wrong]
    caption = (
        "Each row is one person's generated images, each looked at by the networks of all seeds. Blue: recognised as "
        "that person; orange: as another. The stronger the colour, the more often."
    )
    if count > MOST_USERS:
        caption += f" Shown are the {MOST_USERS} of {count} people who are confused most."
    drawn = element("figure", scrolling("confusion matrix", heat_map(names, confusion)), element("figcaption", caption))
    title = "Who is taken for whom, most often first"
    title += f": {MOST_ROWS} of {len(rows)} pairs" if len(rows) > MOST_ROWS else ""
    numbers = table(title, ["asked for", "recognised as", "looks"], rows[:MOST_ROWS], words=["recognised as"])
    summary = element("summary", "Who is taken for whom, in numbers")
    return [drawn, element("details", summary, numbers) if rows else Markup()]


# ---- what the VAE loses


def vae(evaluation: dict, titles: dict[str, str]) -> Markup:
    found, fidelity = evaluation["reconstructions"], evaluation["fidelity"]
    columns = {
        "real": "real images",
        "trained_on": "trained on reconstructions",
        "tested_on": "tested on reconstructions",
    }
    rows = [(titles[judge], *(interval(figures[key]) for key in columns)) for judge, figures in found.items()]
    network = found["network"]
    answer = (
        f"A network trained on real images reaches {interval(network['real'])}, one trained on their reconstructions "
        f"{interval(network['trained_on'])}."
    )
    power = element("h3", "Power by spatial frequency, over that of real images")
    explained = "Low frequencies are broad shapes, high ones fine texture; below 1 some of it is gone."
    chart = element("div", power_chart(fidelity["power"]), note(explained))
    numbers = element("div", powers(fidelity["power"]), measures(fidelity))
    return joined([
        lead("How much of a person is lost when the VAE encodes an image and decodes it again?", answer),
        table("Accuracy, with what the VAE makes of the images", ["judge", *columns.values()], rows),
        power, element("div", chart, numbers, class_="pair"),
    ])  # fmt: skip


def powers(bands: list[dict]) -> Markup:
    rows = [
        (f"{band['low']:.4g} to {band['high']:.4g}", number(band["reconstructed"], ".2f"),
         number(band["generated"], ".2f"))
        for band in bands
    ]  # fmt: skip
    return table("Power over that of real images", ["cycles per pixel", "reconstructed", "generated"], rows)


def measures(fidelity: dict) -> Markup:
    """PSNR and its kind, each with what it means."""
    rows = [
        ("PSNR, the error of pixels (higher is better)", f"{number(fidelity['psnr'], '.2f')} dB"),
        ("SSIM, likeness of structure (1: the same)", number(fidelity["ssim"], ".2f")),
        *(
            (f"{kind}: error of the {part} pixels, over that of the inside", number(value, ".2f"))
            for kind, parts in fidelity["borders"].items() for part, value in parts.items()
        ),
        ("latent components that tell nothing", percent(fidelity["inactive_latents"])),
    ]  # fmt: skip
    return table("Reconstructions beside their originals, and borders of generated images", ["measure", "value"], rows)


# ---- distances


def distances(evaluation: dict) -> Markup:
    generated = [distance for distance in evaluation["distances"] if distance["of"] == "generated"]
    same, measured = sum(distance["same"] for distance in generated), counted(len(generated), "distance")
    answer = f"By {same} of {measured} they do; by the others they lie farther away."
    if not generated:
        answer = "That takes two held-out recordings of most people, and two generated images, which are not there."
    elif same == len(generated):
        answer = "Yes, as far as can be told: no distance is above that of two halves of the real images."
    elif not same:
        answer = f"No: by each of {measured} they lie farther away than two halves of the real images from each other."
    rows = [
        (d["name"], d["space"], d["of"], number(d["value"]), f"{number(d['floor'])} (up to {number(d['floor_high'])})",
         "as near" if d["same"] else "farther away")
        for d in evaluation["distances"]
    ]  # fmt: skip
    headings = ["distance", "measured in", "images", "value", "floor: real to real", "reading"]
    words = ["measured in", "images", "reading"]
    coverage, variety = evaluation["coverage"], evaluation["variety"]
    explained = (
        "The Fréchet distance compares the mean and the spread of two sets of images, the kernel distance their "
        "skewness too; 0 is the same. The floor is what two halves of the held-out recordings have between them, the "
        f"mean of {HALVINGS} halvings: no generator can be asked for less. Up to the highest of them a distance reads "
        "“as near”. Neither is the “FID” or “KID” of papers, which take the features of a network for photographs."
    )
    return joined([
        lead("Do generated images lie as near to real ones as real ones do to each other?", answer),
        table("Distances to held-out real images, beside their floors", headings, rows, words),
        neighbours(coverage) if coverage else "",
        varied(variety) if variety else "",
        note(explained),
    ])  # fmt: skip


def varied(variety: dict) -> Markup:
    said = (
        f"Two generated images of one person differ {number(variety['ratio'], '.2f')} times as much as two real "
        f"training images ({number(variety['generated'])} and {number(variety['real'])})."
    )
    return element("p", element("strong", "Variety within a person. "), said)


def neighbours(coverage: dict) -> Markup:
    meanings = {
        "precision": "precision: generated images that lie among real ones",
        "recall": "recall: real images that lie among generated ones",
        "density": "density: how thickly real ones lie around generated ones",
        "coverage": "coverage: real images that have a generated one near them",
    }
    generated, floor = coverage["generated"], coverage["floor"]
    rows = [(words, number(generated[k], ".2f"), number(floor[k], ".2f")) for k, words in meanings.items()]
    return table(f"Neighbours, in {coverage['space']}", ["measure", "generated", "real to real"], rows)


# ---- copies


def copies(found: dict, shown: Image.Image | None) -> Markup:
    accused, base = of(found["generated_accused"], found["generated"]), of(found["held_out_accused"], found["held_out"])
    answer = (
        f"{accused} lie suspiciously near a training image of their person. Of held-out real images, which cannot be "
        f"copies, the same rule accuses {base}."
    )
    rows = [
        (name_of(pair["generated"]), name_of(pair["training"]), number(pair["distance"]), number(pair["ratio"], ".2f"),
         element("mark", "yes") if pair["accused"] else "no")
        for pair in found["pairs"]
    ]  # fmt: skip
    headings = ["generated", "nearest training image", "distance", "over that of another recording", "suspected"]
    words = "The closest pairs: a generated image above the nearest training image."
    return joined([
        lead("Are generated images copies of training images?", answer),
        picture(shown, words) if shown else "",
        table("The closest pairs", headings, rows, words=["nearest training image", "suspected"]),
    ])  # fmt: skip
