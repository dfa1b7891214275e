"""How often does the judge say "helps" of images that cannot help? `python -m tests.judge.false_helps OUT.md`

Twenty times, with other people each time, the generated images are the real training images, drawn again. Then one
trial of each other case of tests/judge/cases.py. Each is a whole evaluation, as `train.evaluate --quick` makes it, and
takes half a minute on two cores. No part of the test suite; its record is kept under docs/.
"""

import argparse
import time
from pathlib import Path

import torch

from tests.judge.cases import CASES, case
from tests.tiny import tiny, tiny_vae
from train.base.units import percent, points
from train.judge.evaluation import evaluate
from train.judge.verdict import HARMS, HELPS

TRIALS, PEOPLE, SIDE = 20, 12, 32
TRAINED, RECORDINGS = 1, 8  # of each person; of two recordings 96% of twelve people's images are recognised already
WORTHLESS = "resampled"
SHOWN = [name for name in CASES if name not in (WORTHLESS, "exact copies")]


def evaluated(name: str, trial: int) -> dict:
    """Of people who are in no other trial; nothing but the share of inactive latents depends on the untrained VAE."""
    people = range(PEOPLE * trial + 1, PEOPLE * (trial + 1) + 1)
    material = case(name, people, SIDE, trial, TRAINED, RECORDINGS)
    return evaluate(material, tiny_vae(tiny()), [], True, trial, torch.device("cpu"), lambda _: None)


def gain(one: dict) -> str:
    """A judge's own word and figures."""
    if not one["may_judge"]:
        return f"may not judge ({percent(one['accuracy']['mean'])})"
    low, high = points(one["gain"]["low"]), points(one["gain"]["high"])
    return f"{percent(one['accuracy']['mean'])}, {points(one['gain']['mean'])} [{low}, {high}]"


def figures(found: dict) -> list[str]:
    """What tells one case from another."""
    fine, copies = found["fidelity"]["power"][-1], found["copies"]
    apart = [f"{one['name']} in {one['space']} {one['value']:.3g} (floor {one['floor']:.3g})"
             for one in found["distances"] if one["of"] == "generated" and not one["same"]]  # fmt: skip
    return [
        percent(found["right_person"]["generated"]["mean"]),
        f"{found['variety']['ratio']:.2f}",
        percent(fine["generated"]),
        f"{copies['generated_accused']} of {copies['generated']}",
        "; ".join(apart) or "none",
    ]


def row(cells: list) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(head: list[str], rows: list[list]) -> list[str]:
    return [row(head), row(["---"] * len(head)), *map(row, rows), ""]


def said(found: dict) -> list[str]:
    held_out = found["results"]["held_out"]
    return [held_out["verdict"]["word"], *map(gain, held_out["judges"])]


def record(out: Path, trials: int, names: list[str]) -> None:
    """Run everything, and write the record."""
    began, rows, shown = time.monotonic(), [], []

    def ran(name: str, trial: int) -> dict:
        found = evaluated(name, trial)
        print(f"{time.monotonic() - began:.0f} s: {name}, trial {trial}: {said(found)}", flush=True)
        return found

    for trial in range(trials):
        found = ran(WORTHLESS, trial)
        rows.append([trial, found["judges"][0]["steps"], *said(found)])
    for place, name in enumerate(names):
        found = ran(name, trials + place)
        shown.append([name, *said(found), *figures(found)])
    words = [word for _, _, word, *_ in rows]
    judges = ["network: without, gain", "ridge regression: without, gain"]
    lines = [
        "# How often the judge is wrong",
        "",
        f"`python -m tests.judge.false_helps {out}`, torch {torch.__version__}, {torch.get_num_threads()} threads "
        "(which decide nothing but the time).",
        "",
        f"Each trial is a whole `--quick` evaluation of {PEOPLE} people of the simulator who are in no other trial, at "
        f"{SIDE}x{SIDE} pixels: {TRAINED} recording of each to train on, {RECORDINGS - 2 * TRAINED} held out. "
        "Without: accuracy of the best arm without generated images. Gain: of the best arm with generated ones, in "
        "points, with the interval that decides.",
        "",
        "## Generated images that cannot help",
        "",
        "They are the real training images, as many, drawn with replacement.",
        f"**False \"{HELPS}\": {words.count(HELPS)} of {trials}** (false \"{HARMS}\": {words.count(HARMS)}).",
        "",
        *table(["trial", "steps", "verdict", *judges], rows),
        "## Generated images of which it is known what they are",
        "",
        *table(["generated images", "verdict", *judges, "right person", "variety", "power above 0.25", "copies",
                "distances above their floor"], shown),
    ]  # fmt: skip
    out.write_text("\n".join(lines).rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=TRIALS, help="fewer, to try it")
    parser.add_argument("--cases", nargs="*", choices=SHOWN, default=SHOWN)
    arguments = parser.parse_args()
    record(arguments.out, arguments.trials, arguments.cases)
