"""Kill commands again and again: none may end in other bytes than one that never was, nor leave a mixture meanwhile.

    python -m tests.commands.kill_and_resume --kills 50

Each command is run once to its end. Then it is started, killed with SIGKILL, started again and so on; when it gets to
its end it is compared and begun anew, until it has been killed so often. Half of the kills come before one of the
changes that it makes to the disk (a file opened, a rename, a removal), whichever is drawn; the others at a moment drawn
from the time that the undisturbed command took. After every kill, what other commands would read is what was there
before or what is there at the end, as a whole, or is refused.

    vae, ldm     trainings: a VAE with discriminator and EMA; an LDM with fp16's loss scale, EMA and dropout
    last_save    a finished LDM, trained for longer: another final_model takes the place of the one that is there
    sample       a folder of images by user
    evaluate     the report beside these images
    simulate     a new folder, and one that is there
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tests.commands.killing import Running, kill_somewhere, start
from tests.tiny import make_images
from train.base.errors import UserError
from train.base.folders import require_complete
from train.base.units import duration
from train.runs.augmented import EVALUATION, PAGE, REPORT
from train.runs.checkpoint import load_latest

ROOT = Path(__file__).parents[2]
OUTPUT = ["--output_dir", "run"]
TRAINING = ["--config", str(ROOT / "tests/tiny.yaml"), *OUTPUT, "--save_interval", "2"]
VAE = ["--resolution", "32", "--sample_interval", "5", "--set", "vae_loss.adversarial_weight=0.5",
       "--set", "vae_loss.adversarial_start=3"]  # fmt: skip
LDM = ["--sample_interval", "7", "--mixed_precision", "fp16"]
SIMULATE = ["--users", "3", "--images_per_user", "4", "--resolution", "16"]
SLOW = {"evaluate": 10}  # of these, one kill where the others have so many

Files = dict[str, bytes]


# ---- what is compared


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model(folder: Path) -> Files:
    return contents(folder / "run/final_model")


def pictures(folder: Path) -> Files:
    """What others would read of a folder of images; nothing where they would refuse it."""
    try:
        require_complete(folder / "run")
    except UserError:
        return {}
    return {name: content for name, content in contents(folder / "run").items() if "/" in name}


def report(folder: Path) -> Files:
    """What the judge has left, which is complete where its figures are there; but for the time that it took."""
    files = {name: content for name, content in contents(folder / "run").items() if name in REPORT}
    if EVALUATION not in files:
        return {}
    figures = json.loads(files[EVALUATION])
    page = files[PAGE].replace(f"it took {duration(figures.pop('seconds'))}.".encode(), b"")
    return files | {EVALUATION: json.dumps(figures).encode(), PAGE: page}


def state(folder: Path) -> list:
    """Everything in the last checkpoint of a training, and its curves."""
    latest = load_latest(folder / "run/checkpoints")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    measured = ("images_per_second", "peak_memory_bytes")
    curves = [{key: value for key, value in line.items() if key not in measured} for line in lines]
    return [latest.path.name, *leaves(latest.state), curves]


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


# ---- the commands


@dataclass(frozen=True)
class Command:
    name: str
    arguments: list[str]
    readable: Callable[[Path], Files]
    """What other commands would read after it was killed; nothing where there is nothing, or they would refuse it."""
    end: Callable[[Path], object] = lambda folder: None
    """What is compared at its end beside that."""
    before: Path | None = None
    """A copy of this folder is where it begins."""
    once: bool = False
    """Whether it refuses to begin where it has come to its end."""

    def begin(self, folder: Path) -> None:
        if self.before:
            shutil.copytree(self.before, folder)
        else:
            folder.mkdir(parents=True)


def undisturbed(command: Command, folder: Path) -> Running:
    """The command, begun or gone on with in the folder, which nobody kills, at its end."""
    if not folder.exists():
        command.begin(folder)
    running = start(command.name, command.arguments, folder)
    running.finish()
    return running


def assert_same_end(command: Command, whole: Path, killed: Path) -> None:
    ours, theirs = command.readable(whole), command.readable(killed)
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    assert not differing, f"{killed}: not as in {whole}: {', '.join(differing)}"
    assert ours, f"{whole}: {command.name} has left nothing"
    assert command.end(whole) == command.end(killed)


def assert_no_mixture(command: Command, whole: Path, killed: Path) -> None:
    """What can be read now is nothing, or all that was there before, or all that is there at the end."""
    there = command.readable(killed)
    before = command.readable(command.before) if command.before else {}
    assert there in ({}, before, command.readable(whole)), f"{killed}: a mixture can be read: {', '.join(there)}"


def trial(command: Command, folder: Path, kills: int, seed: int) -> Counter:
    """Kill this command so often; how many kills fell where. AssertionError where an end is not the same."""
    whole, killed = folder / "whole", folder / "killed"
    first = undisturbed(command, whole)
    seconds = time.monotonic() - first.began
    rng, where, ends = random.Random(seed), Counter(), 0
    while where.total() < kills:
        if not killed.exists():
            command.begin(killed)
        running, was_killed = kill_somewhere(command.name, command.arguments, killed, rng, len(first.changes), seconds)
        if was_killed:
            where[running.place] += 1
            assert_no_mixture(command, whole, killed)
        ended = not was_killed or (command.once and command.readable(killed) == command.readable(whole))
        if ended or where.total() == kills:
            if not ended:
                undisturbed(command, killed)
            assert_same_end(command, whole, killed)
            shutil.rmtree(killed)
            ends += 1
            print(f"{folder.name}: {where.total()} of {kills} kills, {ends} came to their end", file=sys.stderr)
    return where


def commands(folder: Path, epochs: int) -> dict[str, Command]:
    """All that is killed. The trainings share images, and the LDM has the VAE of an undisturbed run."""
    common = [*TRAINING, "--data_dir", str(make_images(folder / "data"))]
    in_epochs = [*common, "--num_epochs", str(epochs)]
    undisturbed(Command("vae", in_epochs, model), folder / "vae_for_ldm")
    of_ldm = [*LDM, "--vae_path", str(folder / "vae_for_ldm/run/final_model")]
    walkers = partial(Command, "simulate", [*SIMULATE, *OUTPUT], pictures, once=True)
    return {
        "vae": Command("vae", [*in_epochs, *VAE], model, state),
        "ldm": Command("ldm", [*in_epochs, *of_ldm], model, state),
        "last_save": last_save([*common, *of_ldm], folder / "last_save_before"),
        "simulate": walkers(),
        "simulate_in_place": walkers(before=mount_point(folder / "mount")),
    }


def last_save(arguments: list[str], folder: Path) -> Command:
    """Of an LDM of which all steps are taken, and whose final_model is still the one of fewer epochs."""
    longer = Command("ldm", [*arguments, "--num_epochs", "3"], model, state, before=folder)
    undisturbed(Command("ldm", [*arguments, "--num_epochs", "2"], model), folder)
    shorter = shutil.move(folder / "run/final_model", folder / "shorter")
    undisturbed(longer, folder)
    shutil.rmtree(folder / "run/final_model")
    shutil.move(shorter, folder / "run/final_model")
    return longer


def mount_point(folder: Path) -> Path:
    (folder / "run").mkdir(parents=True)
    (folder / "run/.somebody's").write_text("hidden")
    return folder


def of_a_model(folder: Path, trained: Path) -> dict[str, Command]:
    """Those that need a trained LDM."""
    sample = Command("sample", ["--model", str(trained), "--num_images", "3", *OUTPUT], pictures)
    undisturbed(sample, folder / "sampled")
    judge = ["--model", str(trained), "--images", "run", "--quick"]
    return {"sample": sample, "evaluate": Command("evaluate", judge, report, before=folder / "sampled")}


def main() -> None:
    name = "python -m tests.commands.kill_and_resume"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", help="only these, of all that there are")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        killed = commands(folder, epochs=6)
        killed |= of_a_model(folder, folder / "last_save_before/run/final_model")
        for what in args.commands or killed:
            began, kills = time.monotonic(), -(-args.kills // SLOW.get(what, 1))
            where = trial(killed[what], folder / what, kills, args.seed)
            print(f"{what}: killed {kills} times in {time.monotonic() - began:.0f} s, the last change begun being")
            for place, count in where.most_common():
                print(f"  {count:4} {place}")


if __name__ == "__main__":
    main()
