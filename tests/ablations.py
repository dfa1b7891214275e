"""What each setting is worth, by the judge: `python -m tests.ablations RUNS docs/ablations.md --dir speech=FOLDER`

Trains what tests/ablations.yaml lists, every setting with the same seeds, and writes the table. Each training has one
thread, and two go on at once. Runs that are finished in the folder RUNS are not made again, and those that were
stopped go on. No part of the test suite; its record is kept under docs/.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from train.base.files import read_json, write_json
from train.engine.log import read_lines
from train.judge.interval import student_quantile

LIST = Path(__file__).with_suffix(".yaml")
CONFIG = "configs/demo.yaml"
SECONDS = "seconds.json"  # what the commands of a run took
STAGES = {"vae": "VAE", "ldm": "UNet", "sampling": "Sampling, with the baseline's UNet"}  # with their titles


@dataclass(frozen=True)
class Run:
    """One setting, trained once; or, in the stage "sampling", images of the baseline's UNet made in one way."""

    data: str
    stage: str
    setting: str
    seed: int
    keys: dict[str, object]
    """Of the config, that differ from configs/demo.yaml."""
    vae: str = "baseline"
    """The setting whose VAE the LDM uses."""

    def folder(self, runs: Path | str) -> Path:
        return Path(runs) / self.data / self.stage / re.sub(r"\W+", "_", self.setting) / f"seed{self.seed}"


def planned(listed: dict, folders: dict[str, str], seeds: int) -> Iterator[Run]:
    """All runs, of one seed after the other, the VAEs first."""
    for data, common in listed["data"].items():
        where = {"data.dir": folders[data]} if data in folders else {}
        for seed in range(seeds):
            for stage in STAGES:
                for setting, keys in listed[stage].items():
                    keys = dict(keys or {})
                    vae = keys.pop("vae", "baseline")
                    yield Run(data, stage, setting, seed, {**common, **where, "seed": seed, **keys}, vae)


def carry_out(run: Run, runs: Path) -> None:
    """The commands that a user would type, as far as they have not been."""
    folder = run.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = read_json(folder / SECONDS) if (folder / SECONDS).exists() else {}
    train = ["--config", CONFIG, *flags(run.keys), "--output_dir", str(folder / run.stage)]
    if run.stage == "vae":
        commands = {"vae": train}
    else:
        vae = Run(run.data, "vae", run.vae, run.seed, {}).folder(runs) / "vae/final_model"
        trained = run.setting if run.stage == "ldm" else "baseline"
        model = str(Run(run.data, "ldm", trained, run.seed, {}).folder(runs) / "ldm/final_model")
        ways = flags({key: value for key, value in run.keys.items() if key.startswith("sampling.")})
        images = str(folder / "images")
        commands = {
            "ldm": [*train, "--vae_path", str(vae)],
            "sample": ["--model", model, "--per_training_image", "1", "--output_dir", images, *ways],
            "evaluate": ["--model", model, "--images", images, "--quick", "--seed", str(run.seed)],
        }
        if run.stage == "sampling":
            del commands["ldm"]
    for command, words in commands.items():
        if command in seconds:
            continue
        with open(folder / f"{command}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen([sys.executable, "-m", f"train.{command}", *words], stdout=log, stderr=log,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{folder}/{command}.log: train.{command} has failed")
        seconds[command] = used.ru_utime + used.ru_stime  # which a busy machine does not lengthen much
        write_json(folder / SECONDS, seconds)
    print(f"{run.data}, {run.stage}, {run.setting}, seed {run.seed}: {seconds}", flush=True)


def flags(keys: dict[str, object]) -> list[str]:
    """The command line's words for these keys; it takes text as typed, without quotes."""
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return [word for key, value in written.items() for word in ("--set", f"{key}={value}")]


# ---- what came of them

Figures = dict[str, float]


def of_vae(folder: Path) -> Figures:
    judged, last = read_json(folder / "vae/judged.json"), read_lines(folder / "vae/metrics.jsonl")[-1]
    found = {}
    for judge, accuracy in judged.items():
        real = accuracy["on_real"]
        found[f"{judge}: real %"] = 100 * real
        found["about reconstructions, % of that"] = 100 * accuracy["on_reconstructions"] / real
        found["learned from reconstructions, % of that"] = 100 * accuracy["of_reconstructions"] / real
    return found | {
        "PSNR dB": last["validation_psnr"], "SSIM": last["validation_ssim"],
        "power above 0.25, %": 100 * last["power_above_0.25"], "seconds": read_json(folder / SECONDS)["vae"],
    }  # fmt: skip


def of_images(folder: Path) -> Figures:
    found, seconds = read_json(folder / "images/evaluation.json"), read_json(folder / SECONDS)
    held_out, figures = found["results"]["held_out"], {}
    for one in held_out["judges"]:
        accuracy = {arm["name"]: arm["accuracy"]["mean"] for arm in held_out["arms"] if arm["judge"] == one["name"]}
        figures[f"{one['name']}: without generated %"] = 100 * one["accuracy"]["mean"]
        figures[f"{one['name']}: generated alone %"] = 100 * accuracy["generated alone"]
        figures[f"{one['name']}: gain, points"] = 100 * one["gain"]["mean"]
    nearest = next(d for d in found["distances"] if d["of"] == "generated" and d["space"] == "network's features")
    copies = found["copies"]
    return figures | {
        "right person %": 100 * found["right_person"]["generated"]["mean"],
        "variety": found["variety"]["ratio"],
        "Fréchet distance / floor": nearest["value"] / nearest["floor"],
        "copies %": 100 * copies["generated_accused"] / max(copies["generated"], 1),
        "seconds": seconds.get("ldm", seconds["sample"]),
    }


def half_widths(columns: dict[str, list[list[float]]]) -> dict[str, float]:
    """Of the 95% interval of a setting's mean over seeds, by figure: [settings][seeds] each.

    The variance between seeds is that of all settings together, since that of two or three seeds is a guess.
    """
    halves = {}
    for name, settings in columns.items():
        seeds = min(map(len, settings))
        freedom = sum(len(values) - 1 for values in settings)
        pooled = sum(statistics.variance(values) * (len(values) - 1) for values in settings) / freedom
        halves[name] = student_quantile(0.975, freedom) * (pooled / seeds) ** 0.5
    return halves


def table(rows: dict[str, list[Figures]]) -> list[str]:
    """Settings with their figures, one dictionary for each seed; bold where the baseline is surely passed or missed."""
    names = list(rows["baseline"][0])
    halves = half_widths({name: [[found[name] for found in seeds] for seeds in rows.values()] for name in names})
    mean = {setting: {name: statistics.mean(found[name] for found in seeds) for name in names}
            for setting, seeds in rows.items()}  # fmt: skip

    def cell(setting: str, name: str) -> str:
        value = mean[setting][name]
        said = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        return f"**{said}**" if abs(value - mean["baseline"][name]) > 2**0.5 * halves[name] else said

    lines = [["setting", *names], ["---", *["---:"] * len(names)]]
    lines += [[setting, *(cell(setting, name) for name in names)] for setting in rows]
    lines.append(["*half of the 95% interval*", *(f"±{halves[name]:.2g}" for name in names)])
    return [f"| {' | '.join(line)} |" for line in lines]


def record(out: Path, listed: dict, done: list[Run], runs: Path, command: str) -> None:
    figures: dict[str, Callable[[Path], Figures]] = {"vae": of_vae, "ldm": of_images, "sampling": of_images}
    how = (f"`{command}`, torch {torch.__version__}, one thread for each run, two runs at once on two cores; seconds "
           "are those of a core.")  # fmt: skip
    lines = ["# What each setting is worth", "", how, "", listed["about"].strip(), ""]
    for data in listed["data"]:
        for stage, title in STAGES.items():
            rows: dict[str, list[Figures]] = {}
            for run in done:
                if (run.data, run.stage) == (data, stage):
                    rows.setdefault(run.setting, []).append(figures[stage](run.folder(runs)))
            lines += [f"## {title}: {data}", "", *table(rows), ""] if len(rows) > 1 else []
    lines += ["Settings:", ""]
    for stage in figures:
        lines += [f"- {setting}: `{json.dumps(keys)}`" for setting, keys in listed[stage].items() if keys]
    out.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dir", action="append", default=[], metavar="NAME=FOLDER", help="where a data set is")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--list", type=Path, default=LIST)
    given = parser.parse_args()
    listed = yaml.safe_load(given.list.read_text("utf-8"))
    folders = dict(one.split("=", 1) for one in given.dir)
    done = list(planned(listed, folders, given.seeds))
    for stage in STAGES:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda run: carry_out(run, given.runs), [run for run in done if run.stage == stage]))
    words = " ".join(f"--dir {name}=FOLDER" for name in folders)
    record(given.out, listed, done, given.runs, f"python -m tests.ablations RUNS {given.out} {words}")


if __name__ == "__main__":
    main()
