"""Kill a training again and again, at random moments: it must end in the same bytes as one that never was.

    python -m tests.commands.kill_and_resume --kills 50

Each training (VAE with discriminator and EMA; LDM with fp16's loss scale, EMA and dropout) is run once to its end.
Then it is started, killed with SIGKILL, started again and so on; when it gets to its end it is compared and begun
anew, until it has been killed so often. Half of the kills wait until the folder of a half-written checkpoint shows
itself; the others come at a moment drawn from the time that the undisturbed run took, so that they also hit loading,
validation, the clearing of old checkpoints and the writing of the final model. Moments are seeded; where exactly a
process is by then is the machine's matter.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from tests.tiny import make_images
from train import ldm, vae
from train.config import cli
from train.engine import run
from train.runs.checkpoint import load_latest

ROOT = Path(__file__).parents[2]
COMMON = ["--config", str(ROOT / "tests/tiny.yaml"), "--output_dir", "run", "--save_interval", "2"]
ARGUMENTS = {
    "vae": ["--resolution", "32", "--sample_interval", "5", "--set",
            "vae_loss.adversarial_weight=0.5", "--set", "vae_loss.adversarial_start=3"],
    "ldm": ["--sample_interval", "7", "--mixed_precision", "fp16"],
}  # fmt: skip
LIMIT = 600  # seconds after which a process that does not end is taken to hang
processes = multiprocessing.get_context("forkserver")  # children that have torch already, and no threads
processes.set_forkserver_preload(["train.vae", "train.ldm"])


def start(stage: str, arguments: list[str], folder: Path) -> multiprocessing.Process:
    """The command in a process of its own, with `folder` as its working directory: the output is in folder/run."""
    folder.mkdir(parents=True, exist_ok=True)
    process = processes.Process(target=_command, args=(stage, arguments, folder))
    process.start()
    return process


def _command(stage: str, arguments: list[str], folder: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    sys.argv[1:] = arguments
    run.native_precision = lambda device, precision: precision  # fp16 on the CPU too: the loss scale is to be seen
    with open("output.txt", "a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        cli.run(lambda _: {"vae": vae.main, "ldm": ldm.main}[stage](arguments))


def finish(process: multiprocessing.Process, folder: Path) -> None:
    process.join(LIMIT)
    if process.exitcode != 0:
        process.kill()
        raise AssertionError(f"exit code {process.exitcode}, see {folder / 'output.txt'}")


def kill_somewhere(process: multiprocessing.Process, folder: Path, rng: random.Random, seconds: float) -> str | None:
    """Kill it; where it was by then, as far as its files tell; None where it had ended already."""
    checkpoints = folder / "run/checkpoints"
    if rng.random() < 0.5:
        saves = rng.randrange(1, 6)
        seen: set[str] = set()
        while process.is_alive() and len(seen) < saves:
            seen |= half_written(checkpoints)
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
    else:
        process.join(rng.uniform(0, seconds))
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        finish(process, folder)
        return None
    if half_written(checkpoints):
        return "inside a save"
    if not any(checkpoints.glob("step_*")):
        return "before the first checkpoint"
    if (folder / "run/final_model").exists():
        return "while the final model was written"
    return "between two saves"


def half_written(checkpoints: Path) -> set[str]:
    return {path.name for path in checkpoints.glob(".step_*.tmp")}


def assert_same_end(whole: Path, killed: Path) -> None:
    """All files of the final model, all that the last checkpoint holds, and the curves."""
    ours, theirs = (contents(folder / "run/final_model") for folder in (whole, killed))
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    assert not differing, f"{killed}: not as in {whole}: {', '.join(differing)}"
    ours, theirs = (load_latest(folder / "run/checkpoints") for folder in (whole, killed))
    assert ours.path.name == theirs.path.name
    assert list(leaves(ours.state)) == list(leaves(theirs.state))
    assert losses(whole) == losses(killed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Everything in nested containers, tensors as bytes, by name."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        yield name, (value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        yield name, value


def losses(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "peak_memory_bytes")} for line in lines]


def undisturbed(stage: str, arguments: list[str], folder: Path) -> Path:
    """The folder of a run that nobody kills."""
    finish(start(stage, arguments, folder), folder)
    return folder


def trial(stage: str, arguments: list[str], folder: Path, kills: int, seed: int) -> Counter:
    """Kill this training so often; how many kills fell where. AssertionError where an end is not the same."""
    killed, began = folder / "killed", time.monotonic()
    whole = undisturbed(stage, arguments, folder / "whole")
    seconds = time.monotonic() - began
    rng, where, ends = random.Random(seed), Counter(), 0
    while where.total() < kills:
        began, anew = time.monotonic(), not killed.exists()
        place = kill_somewhere(start(stage, arguments, killed), killed, rng, seconds)
        if place:
            where[place] += 1
        elif anew:  # the machine may have become faster
            seconds = time.monotonic() - began
        if not place or where.total() == kills:
            assert_same_end(whole, undisturbed(stage, arguments, killed) if place else killed)
            shutil.rmtree(killed)
            ends += 1
            print(f"{stage}: {where.total()} of {kills} kills, {ends} runs came to their end", file=sys.stderr)
    where["runs that came to their end, all in the same bytes"] = ends
    return where


def commands(folder: Path, epochs: int) -> dict[str, list[str]]:
    """The arguments of both trainings; they share images, and the LDM has the VAE of an undisturbed run."""
    common = [*COMMON, "--data_dir", str(make_images(folder / "data")), "--num_epochs", str(epochs)]
    trained = undisturbed("vae", common, folder / "vae_for_ldm") / "run/final_model"
    return {"vae": [*common, *ARGUMENTS["vae"]], "ldm": [*common, *ARGUMENTS["ldm"], "--vae_path", str(trained)]}


def main() -> None:
    name = "python -m tests.commands.kill_and_resume"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = commands(folder, epochs=6)
        for stage in ("vae", "ldm"):
            began = time.monotonic()
            where = trial(stage, arguments[stage], folder / stage, args.kills, args.seed)
            print(f"{stage}: killed {args.kills} times in {time.monotonic() - began:.0f} s")
            for place, count in where.most_common():
                print(f"  {count:4} {place}")


if __name__ == "__main__":
    main()
