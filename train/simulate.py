"""The built-in data set: micro-Doppler pictures of simulated walkers.

`python -m train.simulate --output_dir FOLDER`; the same people under other conditions, to judge on:
`python -m train.simulate --condition carrying --output_dir data/simulated_carrying` (or oblique, or noisy).
"""

import os
import shutil
from pathlib import Path

from PIL import Image

from train.base.errors import require
from train.base.files import read_names, write_json, writing
from train.base.folders import INCOMPLETE
from train.base.progress import progress
from train.config import cli
from train.data import walkers
from train.runs.folder import LOCK, is_free, locked

MOVING = ".moving"  # what leaves the incomplete folder, from the first of it to the last


def main(argv: list[str] | None = None) -> None:
    """Writes ID1/rec01_00.png, ...: user, recording, picture. They are to be split by recording."""
    parser = cli.Parser("simulate", __doc__)
    parser.add_argument("--output_dir", "--output-dir", type=cli.a_path, required=True,
                        help="a new or an empty folder, which gets a folder of pictures per person")
    parser.add_argument("--users", type=int, default=31, help="people: ID1, ID2, ...")
    parser.add_argument("--images_per_user", "--images-per-user", type=int, default=100,
                        help=f"pictures of each person, {walkers.PICTURES_PER_RECORDING} of a recording")
    parser.add_argument("--resolution", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="other people and other walks for another one")
    parser.add_argument("--condition", choices=tuple(walkers.CONDITIONS), default="plain",
                        help="carrying: a backpack; oblique: walking past the radar at 30 to 50 degrees; noisy")
    args = parser.parse_args(argv)
    for flag, least in (("users", 1), ("images_per_user", 1), ("resolution", 8), ("seed", 0)):
        given = getattr(args, flag)
        require(given >= least, f"--{flag} {given}: must be at least {least}")
    size, most = args.resolution, walkers.PICTURE_SAMPLES
    require(size <= most, f"--resolution {size}: must be at most {most}, a picture's radar samples")

    output = Path(os.path.realpath(args.output_dir))  # follows a link
    # A folder that is there, perhaps a mount point, is filled; else the new one is put in its place when it is whole.
    filled = output.exists()
    part = output / INCOMPLETE if filled else output.with_name(f".{output.name}.part")
    require(is_free(output) or (part / MOVING).is_file(), _taken(args.output_dir))
    with writing(args.output_dir):
        part.mkdir(parents=True, exist_ok=True)
    with writing(args.output_dir), locked(part, "simulating"):
        try:
            take_back(part, output)
            require(is_free(output), _taken(args.output_dir))  # by another process meanwhile
            for left in users(part):  # by a process that was killed
                shutil.rmtree(left)
            people, condition = range(1, args.users + 1), walkers.CONDITIONS[args.condition]
            made = walkers.simulate(people, args.images_per_user, args.resolution, args.seed, condition)
            for folder, name, image in progress(made, total=args.users * args.images_per_user, unit="picture"):
                (part / folder).mkdir(exist_ok=True)
                Image.fromarray(image).save(part / folder / name, compress_level=3)
            if filled:
                move(part, output)
            else:
                part.rename(output)
                (output / LOCK).unlink()
        finally:
            take_back(part, output)
            shutil.rmtree(part, ignore_errors=True)


def move(part: Path, output: Path) -> None:
    """Move the users' folders out of one that marks the `output` as incomplete; with the last one the mark goes too."""
    write_json(part / MOVING, {"users": [folder.name for folder in users(part)]})
    for folder in users(part):
        folder.rename(output / folder.name)
    done = output / f"{INCOMPLETE}.old"
    shutil.rmtree(done, ignore_errors=True)
    shutil.rmtree(part.rename(done))


def take_back(part: Path, output: Path) -> None:
    """Move back what a process that did not come to its end has moved, which would pass for a whole data set."""
    moving = read_names(part / MOVING, "users") if (part / MOVING).is_file() else []
    for name in moving:
        if (output / name).exists() and not (part / name).exists():
            (output / name).rename(part / name)


def users(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _taken(folder: Path) -> str:
    return f"{folder}: is not an empty folder; delete it or name another --output_dir"


if __name__ == "__main__":
    cli.run(main)
