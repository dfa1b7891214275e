"""Beside what a user of `diffusers` would have done: `python -m tests.against_diffusers OUTPUT_FOLDER OUT.md`

Trains, samples and judges as `make train-ldm` does; then plain.py trains models of the same sizes on the same images,
each for as many seconds as ours took, and samples as many images, which the same judge looks at, with their own VAE.
The table of all figures goes to OUT.md; its record is kept under docs/. No part of the test suite but for a very small
experiment. The machine should have nothing else to do: both are given the same time and not the same work.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import torch

from nets.vae import AutoencoderKL
from tests.against_diffusers import plain
from tests.against_diffusers.table import figures, side_by_side, summary
from train import ldm, sample, vae
from train.base.errors import require
from train.base.files import read_json, write_json
from train.config import cli
from train.config.schema import Config
from train.data.images import save_picture
from train.data.split import read_split
from train.engine.device import pick_device
from train.engine.log import read_lines
from train.engine.precision import native_precision
from train.judge import pictures
from train.judge.evaluation import evaluate
from train.judge.material import collect
from train.runs import model_folder
from train.runs.diffusers import unet_to_diffusers, vae_to_diffusers
from train.runs.final_model import config_path, load_ldm, split_path, trained_users
from train.runs.folder import is_free
from train.runs.generated import SEED, image_files

ROOT = Path(__file__).parents[2]


def run_ours(folder: Path, flags: list[str], times: int) -> dict:
    """Train and sample in `folder`; returns what `plain.run` does, with the seconds of the whole commands."""
    model, images = folder / "ldm/final_model", folder / "images"
    seconds = {
        "vae": timed(vae.main, [*flags, "--output_dir", str(folder / "vae")]),
        "unet": timed(ldm.main, [*flags, "--vae_path", f"{folder}/vae/final_model", "--output_dir", f"{folder}/ldm"]),
        "sampling": timed(
            sample.main,
            ["--model", str(model), "--purpose", "augment", "--per_training_image", str(times),
             "--output_dir", str(images)],
        ),
    }
    config = Config.read(config_path(model))
    trained = load_ldm(model, config)
    models, names = {"vae": trained.vae, "unet": trained.denoiser}, {"vae": "vae", "unet": "ldm"}
    return {
        "parameters": {stage: sum(p.numel() for p in one.parameters()) for stage, one in models.items()},
        "images_per_step": {stage: config.training(name).images_per_step for stage, name in names.items()},
        "steps": {stage: read_lines(folder / name / "metrics.jsonl")[-1]["step"] for stage, name in names.items()},
        "seconds": seconds,
    }


def timed(command: Callable[[list[str]], object], words: list[str]) -> float:
    began = time.monotonic()
    command(words)
    return time.monotonic() - began


def experiment(model: Path, images: Path, seconds: dict[str, float]) -> dict:
    """What plain.py is given: the images of our training recordings, our sizes, our time, our number of images.

    Its users go into the cross-attention, as a prompt would; ours may go into the time embedding as well.
    """
    config, users = Config.read(config_path(model)), trained_users(model)
    _, sides, _ = read_split(split_path(model))
    files = sides["train"] + sides["validation"]
    unet = replace(config.unet, condition_in_time_embedding=False, sample_size=config.latent_side)
    return {
        "files": {u: [f"{config.data.dir}/{file}" for file in files if file.startswith(f"{u}/")] for u in users},
        "images": {user: len(image_files(images, user)) for user in users},
        "resolution": config.data.resolution,
        "vae": vae_to_diffusers(replace(config.vae, sample_size=config.data.resolution)),
        "unet": unet_to_diffusers(unet),
        "seconds": {stage: seconds[stage] for stage in ("vae", "unet")},
        "seed": config.seed,
    }


def judged(model: Path, folder: Path, their_vae: Path, quick: bool) -> dict:
    """What train.evaluate finds of the images in `folder`, and of this VAE; `model` says what is held out."""
    config, device = Config.read(config_path(model)), pick_device()
    one = model_folder.load(their_vae, AutoencoderKL).to(device)
    material = collect(model, config, folder / "images", None, one, device)
    found = evaluate(material, one, [], quick, SEED, device, lambda line: print(f"judging {folder}: {line}"))
    write_json(folder / "evaluation.json", found)
    save_picture(pictures.side_by_side(material), folder / "generated_and_real.png")
    return found


def machine() -> str:
    information, model = Path("/proc/cpuinfo"), platform.processor()
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else (names or [model])[0]
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}"
    return f"{chip}, {threads}, {versions}"


def commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or "not known"


def record(command: str, found: dict[str, dict], runs: dict[str, dict], data: dict) -> str:
    """The document; `found` and `runs` are by whose they are."""
    ours, theirs = (figures(found[whose], runs[whose]) for whose in ("ours", "diffusers"))
    lines = [
        "# Beside what a user of `diffusers` would have done",
        "",
        f"`{command}` at commit {commit()}, on {machine()}.",
        "",
        f"{len(data['users'])} users, {data['training_images']:,} images to train on, {data['held_out_images']:,} of "
        f"{data['held_out_recordings']:,} recordings held out, {data['generated_images']:,} generated. "
        "[plain.py](../tests/against_diffusers/plain.py) trains models of `diffusers` of the same sizes, on the same "
        "images, by the old recipe: noise predicted, one image at a time and four to a step, the VAE in the loop, a "
        "constant rate of 1e-4, no moving average, DDIM in 50 steps with guidance 2. It trains for as many seconds as "
        "ours takes from its start to its end, with all that ours does beside training (reading, validations, "
        "pictures, judging); of its own time only training counts. It learns from our validation images as well. Our "
        "guidance is chosen by judges of the training recordings, in the time of our sampling.",
        "",
        "".join(summary(ours, theirs)).strip(),
        "",
        *side_by_side(ours, theirs),
        "",
        "Bold: the better one; of two figures with intervals, only where these lie apart. Best is high for accuracies "
        "and gains, else what stands in brackets; distances and neighbours count as no better than between halves of "
        "the real images. One training each.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    name = "python -m tests.against_diffusers"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of both runs; an empty or a new one")
    parser.add_argument("out", type=Path, help="the document")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--data_dir", help="sets data.dir")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--per_training_image", type=int, default=1, help="generated images for each training image")
    parser.add_argument("--quick", action="store_true", help="judge with fewer arms and seeds")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    args = parser.parse_args(argv)
    require(is_free(args.folder), f"{args.folder}: is not an empty folder; its trainings would go on, not be timed")
    flags = ["--config", args.config, *(["--data_dir", args.data_dir] if args.data_dir else [])]
    flags += [word for setting in args.set for word in ("--set", setting)]
    config = cli.read_config(cli.make_parser("ldm", "", "ldm").parse_args(flags), "ldm")
    for stage in ("vae", "ldm"):
        precision = native_precision(pick_device(), config.training(stage).mixed_precision)
        require(precision == "no", f"plain.py trains in fp32 only: --set {stage}_training.mixed_precision=no")

    ours, theirs = args.folder / "ours", args.folder / "diffusers"
    model = ours / "ldm/final_model"
    runs = {"ours": run_ours(ours, flags, args.per_training_image)}
    write_json(theirs / "experiment.json", experiment(model, ours / "images", runs["ours"]["seconds"]))
    runs["diffusers"] = plain.run(read_json(theirs / "experiment.json"), theirs)
    write_json(args.folder / "runs.json", runs)
    found = {
        "ours": judged(model, ours, model / "vae", args.quick),
        "diffusers": judged(model, theirs, theirs / "vae", args.quick),
    }
    command = shlex.join([*name.split(), *(sys.argv[1:] if argv is None else argv)])
    text = record(command, found, runs, found["ours"]["data"])
    args.out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
