"""Parts of the report on what judges reach: who judged, why, the arms, what the images are worth, who gains."""

from collections.abc import Callable

from train.base.errors import some
from train.base.markup import Markup, element, joined, lead, listed, name_of, note, table
from train.judge.arms import CURVE, GENERATED, REAL, RECONSTRUCTED
from train.judge.charts import gain_bars, interval_key, interval_plot, learning_curve
from train.judge.figures import capital, gain, interval, percent, points, sentence

SETS = {"held_out": "On held-out recordings", "test_dir": "Under other conditions"}
"""The sets of test images, as headings and as the first words of a sentence."""
EXPOSURES = {"steps": "at equal steps", "real images": "at equal exposure to real images"}


def per_set(results: dict[str, dict], block: Callable[[dict, str], object]) -> Markup:
    """`block(result, heading)` of each set, under the set's name where there are two; `heading` is the level below."""
    if len(results) == 1:
        return joined(block(found, "h3") for found in results.values())
    return joined(joined([element("h3", SETS[key]), block(found, "h4")]) for key, found in results.items())


def of_judge(entries: list[dict], judge: str) -> list[dict]:
    return [entry for entry in entries if entry["judge"] == judge]


def arm_of(arms: list[dict], judge: str, name: str, exposure: str = "steps") -> dict:
    """The arm of this judge and name in which that is equal."""
    return next(arm for arm in of_judge(arms, judge) if (arm["name"], arm["exposure"]) == (name, exposure))


# ---- who judged, and why


def judges(results: dict[str, dict], titles: dict[str, str]) -> Markup:
    def card(judge: dict, level: str) -> Markup:
        exposure = f", {EXPOSURES['real images']}" if judge["exposure"] == "real images" else ""
        facts = {
            "right by chance": percent(judge["chance"]),
            f"best without generated images: {judge['baseline']}": interval(judge["accuracy"]),
            f"gain with {judge['arm']}{exposure}": gain(judge["gain"], " points"),
            "this judge's verdict": judge["word"],
        }
        may = ("may judge", "badge yes") if judge["may_judge"] else ("may not judge", "badge no")
        heading = element(level, capital(titles[judge["name"]]), " ", element("span", may[0], class_=may[1]))
        why_not = "" if judge["may_judge"] else element("p", sentence(judge["says"]))
        pairs = (joined([element("dt", key), element("dd", value)]) for key, value in facts.items())
        return element("article", heading, why_not, element("dl", *pairs), class_="card")

    def answer(key: str, result: dict) -> str:
        able = [titles[judge["name"]] for judge in result["judges"] if judge["may_judge"]]
        told = ("neither may judge, so that nothing can be told", f"only {some(able)} may judge", "both may judge")
        return f"{SETS[key]}: {told[len(able)]}."

    def block(result: dict, level: str) -> Markup:
        return element("div", *(card(judge, level) for judge in result["judges"]), class_="cards")

    question = "Can the judges tell people apart, and is there room to get better?"
    explained = (
        "Two judges of different kinds, so that no conclusion hangs on one. A judge that only guesses cannot show "
        "whether images help, nor can one that is right nearly always without them."
    )
    answers = (answer(*item) for item in results.items())
    return joined([lead(question, *answers), per_set(results, block), note(explained)])


def why(results: dict[str, dict]) -> Markup:
    """Causes and advice."""

    def block(result: dict, level: str) -> Markup:
        columns = [("Why", "because", "ul"), ("What to try next", "advice", "ol")]
        lists = (
            element("div", element(level, heading), listed(map(sentence, result[key]), kind))
            for heading, key, kind in columns if result[key]
        )  # fmt: skip
        return element("div", *lists, class_="pair")

    def answer(key: str, result: dict) -> str:
        arms = (REAL, RECONSTRUCTED, GENERATED)
        real, decoded, made = (arm_of(result["arms"], "network", arm.name)["accuracy"]["mean"] for arm in arms)
        return (
            f"{SETS[key]}, a network trained on real images reaches {percent(real)}, on their reconstructions "
            f"{percent(decoded)}, on generated images alone {percent(made)}."
        )

    question = "Where is something lost between real and generated images?"
    answers = (answer(*item) for item in results.items())
    return joined([lead(question, *answers), per_set(results, block)])


# ---- the arms


def arms(results: dict[str, dict], titles: dict[str, str], settings: dict) -> Markup:
    """Charts and tables of what each judge reaches with each mixture of training images."""

    def chart(result: dict, judge: dict, level: str) -> Markup:
        title = capital(titles[judge["name"]])
        curve = [arm.name for arm in CURVE]  # which has a chart of its own
        entries = [arm for arm in of_judge(result["arms"], judge["name"]) if arm["name"] not in curve]
        return element("div", element(level, title), interval_plot(title, entries, *best_two(result, judge)))

    def block(result: dict, level: str) -> Markup:
        charts = (chart(result, judge, level) for judge in result["judges"])
        tables = (arm_table(titles[judge["name"]], result, judge) for judge in result["judges"])
        return joined([sifting(result["sifting"]), element("div", *charts, class_="pair"), interval_key(), *tables])

    def answer(key: str, result: dict) -> str:
        judge = next(judge for judge in result["judges"] if judge["name"] == result["verdict"]["judge"])
        _, best = best_two(result, judge)
        return (
            f"{SETS[key]}, the best mixture with generated images reaches {interval(best['accuracy'])}, the best "
            f"without {interval(judge['accuracy'])} ({titles[judge['name']]})."
        )

    explained = (
        "Each row is a mixture of training images, called an arm. At equal steps, an arm trains for as many steps as "
        "“real”, so that more images mean fewer looks at each: is it better? At equal exposure, it trains until it has "
        "looked at each real image as often as “real” has: was it only diluted? Oversampled: real images alone, for as "
        "many steps as the longest arm with generated ones. With augmentation, images are changed at random: "
        f"{', '.join(settings['augmentation'])}. Ridge regression solves an equation and takes no steps. An arrow "
        "stands for a figure beyond the edge of its chart."
    )
    question = "Does a judge recognise more in new recordings if it trains on generated images too?"
    answers = (answer(*item) for item in results.items())
    return joined([lead(question, *answers), note(explained), per_set(results, block)])


def sifting(found: dict | None) -> Markup:
    """What sifting brings; nothing where it was not tried."""
    explained = (
        " Sifted arms have up to as many images as those with 1 x generated, such as train.augment --sift would take. "
        "A gain is the mean over all arms that were run both ways; the intervals of two judges hold at once."
    )
    return element("p", sentence(found["sentence"]), explained) if found else Markup()


def best_two(result: dict, judge: dict) -> tuple[dict, dict]:
    """The best arms of a judge, without and with generated images."""
    best = arm_of(result["arms"], judge["name"], judge["arm"], judge["exposure"])
    return arm_of(result["arms"], judge["name"], judge["baseline"]), best


def arm_table(title: str, result: dict, judge: dict) -> Markup:
    """One row for each arm, with equal steps and equal exposure side by side where a judge takes steps."""
    baseline, best = best_two(result, judge)
    by_name: dict[str, dict[str, dict]] = {}
    for arm in of_judge(result["arms"], judge["name"]):
        by_name.setdefault(arm["name"], {})[arm["exposure"]] = arm
    takes_steps = baseline["steps"] is not None
    exposures = EXPOSURES if takes_steps else ["steps"]

    def cells(arm: dict | None) -> list[object]:
        if arm is None:
            return [""] * (2 + takes_steps)
        steps = [f"{arm['steps']:,}"] if takes_steps else []
        figures = [interval(arm["accuracy"]), gain(arm["gain"])]
        if arm in (baseline, best):
            badge = element("span", "best without" if arm is baseline else "best with", class_="badge")
            figures = [joined([element("mark", figures[0]), badge]), element("mark", figures[1])]
        return [*steps, *figures]

    rows = [
        (name, f"{next(iter(found.values()))['images']:,}",
         *(cell for exposure in exposures for cell in cells(found.get(exposure))))
        for name, found in by_name.items()
    ]  # fmt: skip
    headings = [*(["steps"] if takes_steps else []), "accuracy", "gain over best without"]
    groups = [("", 2), *((words, len(headings)) for words in EXPOSURES.values())] if takes_steps else []
    caption = f"Arms, judged by {title}: accuracy in percent, gain in points"
    return table(caption, ["arm", "images", *headings * len(exposures)], rows, groups=groups)


# ---- what the images are worth, and to whom


def worth(results: dict[str, dict], titles: dict[str, str]) -> Markup:
    def column(result: dict, said: dict, level: str) -> Markup:
        curve, title = of_judge(result["learning_curve"], said["judge"]), capital(titles[said["judge"]])
        best = arm_of(result["arms"], said["judge"], said["arm"])
        rows = [(percent(point["share"]), f"{point['images']:,}", interval(point["accuracy"])) for point in curve]
        rows.append((best["name"], f"{best['images']:,}", interval(best["accuracy"])))
        return element(
            "div",
            element(level, title),
            learning_curve(title, curve, best["accuracy"], said["times"]),
            element("p", sentence(said["sentence"])),
            table("Accuracy by share of the real images", ["share of the real images", "images", "accuracy"], rows),
        )

    def block(result: dict, level: str) -> Markup:
        return element("div", *(column(result, said, level) for said in result["worth"]), class_="pair")

    explained = (
        "The curve is the accuracy with ever more real images alone, all at equal steps. The level line is that of "
        "real and generated images together: where it meets the curve, so many real images would do as well."
    )
    answers = (f"{SETS[key]}, {result['worth'][0]['sentence']}." for key, result in results.items())
    asked = lead("How many real images would do as much good?", *map(sentence, answers))
    return joined([asked, note(explained), per_set(results, block)])


def users(results: dict[str, dict]) -> Markup:
    def block(result: dict, _: str) -> Markup:
        ordered = sorted(result["users"], key=lambda user: -user["gain"])
        rows = [
            (name_of(user["name"]), user["images"], percent(user["real"]), percent(user["with_generated"]),
             points(user["gain"]), percent(user["right_person"]))
            for user in ordered
        ]  # fmt: skip
        headings = ["person", "test images", "without", "with", "gain", "right person"]
        title = "Test images recognised without and with generated ones, and generated ones of the right person"
        both = element("div", gain_bars(ordered), table(title, headings, rows), class_="pair people")
        return joined([weakest(result["weakest_quarter"], result["users"]), both])

    def weakest(found: dict, everybody: list[dict]) -> Markup:
        if 1 < len(everybody) == len(found["users"]):
            return element("p", f"Without generated images all {len(everybody)} are recognised equally often.")
        who = element("strong", f"Recognised least without them ({some(found['users'], 8)}): ")
        before, after = interval(found["real"]), interval(found["with_generated"])
        images = [user["images"] for user in everybody if user["name"] in found["users"]]
        few, many = min(images), max(images)
        asked = f"{few:,} test images" if few == many else f"{few:,} to {many:,} test images"
        return element(
            "p", who, f"{before} without generated images, {after} with, {gain(found['gain'], ' points')}. ",
            f"Each has {asked}, so that one image recognised more or less is {percent(1 / few)} of them.",
        )  # fmt: skip

    def answer(key: str, result: dict) -> str:
        gains = [user["gain"] for user in result["users"]]
        up, down = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        return f"{SETS[key]}, {up} of {len(gains)} people are recognised more often with them, {down} less often."

    question = "Do the generated images serve everybody, or some at the cost of others?"
    answers = (answer(*item) for item in results.items())
    return joined([lead(question, *answers), per_set(results, block)])
