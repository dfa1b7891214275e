"""Two evaluations side by side: every figure of the report, and which of both is better."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from train.judge.figures import NONE, gain, interval, number, of, percent
from train.judge.verdict import TITLES


@dataclass(frozen=True)
class Cell:
    shown: str
    low: float | None = None
    """How good it is, as far as its interval reaches: higher is better. None: neither good nor bad, or not known."""
    high: float | None = None

    def beats(self, other: "Cell") -> bool:
        """Whether it is better as far as the intervals tell, and by so much that it is to be seen."""
        return None not in (self.low, other.high) and self.low > other.high and self.shown != other.shown


def exactly(shown: str, goodness: float) -> Cell:
    """A figure without an interval."""
    return Cell(shown, goodness, goodness)


def share(figure: dict) -> Cell:
    return Cell(interval(figure), figure["low"], figure["high"])


def near_one(ratio: float) -> Cell:
    return exactly(number(ratio, ".2f"), -abs(math.log(max(ratio, 1e-12))))


def figures(found: dict, run: dict) -> dict[str, Cell]:
    """Each figure of an evaluation by its name, and of the run that made the images; the same names for every run."""
    rows = {}
    for part in (of_arms, of_images, of_distances, of_vae, of_run):
        for name, cell in part(run if part is of_run else found):
            assert name not in rows, name
            rows[name] = cell
    return rows


def of_arms(found: dict) -> Iterator[tuple[str, Cell]]:
    result = found["results"]["held_out"]
    yield "**Does it help a classifier?**", Cell("")
    yield "verdict", Cell(result["verdict"]["word"])
    for judge in result["judges"]:
        title = TITLES[judge["name"]]
        arms = {(arm["name"], arm["exposure"]): arm for arm in result["arms"] if arm["judge"] == judge["name"]}
        yield f"best without generated images, {title}", Cell(interval(judge["accuracy"]))
        yield f"generated alone, {title}", share(arms["generated alone", "steps"]["accuracy"])
        yield f"real + generated, {title}", share(arms[judge["arm"], judge["exposure"]]["accuracy"])
        sure = judge["gain"] if judge["may_judge"] else {"low": None, "high": None}
        said = "" if judge["may_judge"] else " (it may not judge)"
        yield f"gain in points, {title}", Cell(gain(judge["gain"]) + said, sure["low"], sure["high"])
    weakest = result["weakest_quarter"]["gain"]
    yield "gain of the weakest quarter, in points", Cell(gain(weakest), weakest["low"], weakest["high"])


def of_images(found: dict) -> Iterator[tuple[str, Cell]]:
    copies, variety = found["copies"], found["variety"]
    accused, base = (copies[f"{kind}_accused"] / max(copies[kind], 1) for kind in ("generated", "held_out"))
    yield "**The generated images**", Cell("")
    yield "right person, by a network of real images", share(found["right_person"]["generated"])
    yield "variety within a person, over that of real images (1)", near_one(variety["ratio"]) if variety else Cell(NONE)
    shown = f"{of(copies['generated_accused'], copies['generated'])}; held out: {percent(base)}"
    yield "suspected copies (as few as of held-out images)", exactly(shown, -max(accused - base, 0))
    for band in found["fidelity"]["power"]:
        yield f"power at {bounds(band)}, generated over real (1)", near_one(band["generated"])
    yield from borders(found, "generated")


def of_distances(found: dict) -> Iterator[tuple[str, Cell]]:
    there = {(one["name"], one["space"], one["of"]): one for one in found["distances"]}
    yield "**Distances to held-out real images**", Cell("")
    for of_what in ("generated", "reconstructed"):
        for space in ("network's features", "row spectra"):
            for name in ("Fréchet distance", "kernel distance"):
                one = there.get((name, space, of_what))
                shown = one and f"{number(one['value'])} (floor {number(one['floor'])})"
                row = f"{name} in {space}, {of_what} (low)"
                yield row, exactly(shown, -max(one["value"], one["floor"])) if one else Cell(NONE)
    coverage = found["coverage"]
    for name in ("precision", "recall", "density", "coverage"):
        value, floor = (coverage[kind][name] if coverage else None for kind in ("generated", "floor"))
        shown = f"{number(value, '.2f')} (real to real {number(floor, '.2f')})"
        yield f"{name} (high)", exactly(shown, min(value, floor)) if coverage else Cell(NONE)


def of_vae(found: dict) -> Iterator[tuple[str, Cell]]:
    fidelity = found["fidelity"]
    yield "**What the VAE keeps**", Cell("")
    for judge, kept in found["reconstructions"].items():
        yield f"accuracy, trained on reconstructions, {TITLES[judge]}", share(kept["trained_on"])
        yield f"accuracy, tested on reconstructions, {TITLES[judge]}", share(kept["tested_on"])
    yield "PSNR, dB (high)", exactly(number(fidelity["psnr"], ".2f"), fidelity["psnr"])
    yield "SSIM (high)", exactly(number(fidelity["ssim"], ".3f"), fidelity["ssim"])
    for band in fidelity["power"]:
        yield f"power at {bounds(band)}, reconstructed over real (1)", near_one(band["reconstructed"])
    yield from borders(found, "reconstructed")
    yield "latent components that tell nothing", Cell(percent(fidelity["inactive_latents"]))


def of_run(run: dict) -> Iterator[tuple[str, Cell]]:
    yield "**What it took**", Cell("")
    for stage, title in (("vae", "VAE"), ("unet", "UNet and users")):
        yield f"{title}: parameters", Cell(f"{run['parameters'][stage]:,}")
        yield f"{title}: seconds of training", Cell(f"{run['seconds'][stage]:.0f}")
        steps, images = run["steps"][stage], run["images_per_step"][stage]
        yield f"{title}: optimizer steps, of so many images", Cell(f"{steps:,} of {images}")
    seconds = run["seconds"]["sampling"]
    yield "seconds of sampling (low)", exactly(f"{seconds:.0f}", -seconds)


def borders(found: dict, kind: str) -> Iterator[tuple[str, Cell]]:
    for part, error in found["fidelity"]["borders"][kind].items():
        row = f"error of {part} pixels over that inside, {kind} (low)"
        yield row, exactly(number(error, ".2f"), -max(error, 1))


def bounds(band: dict) -> str:
    return f"{band['low']:.4g} to {band['high']:.4g} cycles per pixel"


def side_by_side(ours: dict[str, Cell], theirs: dict[str, Cell]) -> list[str]:
    """The lines of a markdown table; what is better is bold."""
    assert list(ours) == list(theirs)

    def marked(cell: Cell, other: Cell) -> str:
        return f"**{cell.shown}**" if cell.beats(other) else cell.shown

    rows = [[name, marked(ours[name], theirs[name]), marked(theirs[name], ours[name])] for name in ours]
    lines = [["", "ours", "`diffusers`"], ["---", "---:", "---:"], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def summary(ours: dict[str, Cell], theirs: dict[str, Cell]) -> list[str]:
    """In how many figures ours is better, and by name those in which it is not."""
    compared = [name for name in ours if None not in (ours[name].low, theirs[name].low)]
    better = [name for name in compared if ours[name].beats(theirs[name])]
    worse = [name for name in compared if theirs[name].beats(ours[name])]
    even = [name for name in compared if name not in better + worse]
    lists = {"Neither is better in": even, "`diffusers` is better in": worse}
    return [
        f"Ours is better in {len(better)} of {len(compared)} figures. ",
        *(f"{said}: {'; '.join(names)}. " for said, names in lists.items() if names),
    ]
