"""A folder of generated images: `USER/generated_000.png`, ..., and the settings that made them, `settings.json`."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from train.base.errors import require
from train.base.files import read_json, real_path, tensors_hash, write_json
from train.base.names import located
from train.config.sections import DataConfig, GenerationConfig
from train.data.images import SUFFIXES, read_image
from train.runs.final_model import TrainedLDM
from train.runs.folder import is_free
from train.runs.pictures import image_grid, user_labels
from train.runs.so_far import run_of

SETTINGS = "settings.json"
AUGMENTED = "augmented.json"  # the same of an augmented data set (train/runs/augmented.py)
SEED = 0  # where none is given
MOST_IMAGES = 100_000  # of each user
GRID_COLUMNS, GRID_LINES = 30, 31


def settings_of(sampling: GenerationConfig, seed: int, trained: TrainedLDM) -> dict:
    """All that decides the image of a user and a number, as JSON holds it."""
    decisive = {key: value for key, value in asdict(sampling).items() if key != "batch_size"}
    settings = {"seed": seed, "sampling": decisive, **model_of(trained)}
    return json.loads(json.dumps(settings))  # tuples become lists


def model_of(trained: TrainedLDM) -> dict:
    """What the images of a model depend on beside seed and sampling: its weights, and how they are used."""
    vae, denoiser = trained.vae, trained.denoiser
    parts = {"vae": vae, "unet": denoiser.unet, "user_encoder": denoiser.user_encoder, "schedule": trained.schedule}
    weights = tensors_hash(tensor for model in (vae, denoiser) for tensor in model.state_dict().values())
    return {"weights": weights, "users": trained.users, **{name: asdict(part.config) for name, part in parts.items()}}


def default_folder(model: Path, settings: dict) -> Path:
    """A folder beside the model, named after all that decides the images, so that it never holds others."""
    sampling, short = settings["sampling"], tensors_hash((), settings)[:8]
    name = f"{sampling['sampler']}{sampling['steps']}_guidance{sampling['guidance']:g}_seed{settings['seed']}_{short}"
    return run_of(model) / "generated" / name


def claim_folder(real: Path, folder: Path, settings: dict) -> None:
    """Write the settings into the folder.

    UserError where it holds anything but images of the same settings, or lies within that of the `real` ones.
    """
    refuse_within(real, folder)
    refuse_others(folder / SETTINGS, settings, "one of generated images", "give another --output_dir")
    write_json(folder / SETTINGS, settings)


def refuse_within(real: Path, folder: Path) -> None:
    inside = real_path(folder).is_relative_to(real_path(real))
    require(not inside, f"{folder}: lies within data.dir {real}, where it would count as a user; give another folder")


def refuse_others(path: Path, settings: dict, kind: str, instead: str) -> None:
    """UserError where the folder holds other settings than these at `path`, or other things than this kind's."""
    folder = path.parent
    if path.is_file():
        before = read_json(path)
        differing = [key for key in settings if before.get(key) != settings[key]]
        require(not differing, f"{folder}: holds images of other {' and '.join(differing)}; {instead}")
    else:
        require(is_free(folder), f"{folder}: is not an empty folder, nor {kind}; {instead}")


def image_paths(folder: Path, names: list[str], images: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Path]:
    """Where each of the images (user, number) belongs."""
    places = [located(folder, name) for name in names]
    return {(user, number): places[user] / f"generated_{number:03d}.png" for user, number in images}


def image_files(folder: Path, user: str) -> list[Path]:
    return sorted(located(folder, user).glob("*.png"))


def are_mixed(folder: Path) -> bool:
    """Whether the folder's images were generated with mixing, as far as it says."""
    made_with = [read_json(folder / name) for name in (SETTINGS, AUGMENTED) if (folder / name).is_file()]
    samplings = [settings["sampling"] for settings in made_with if isinstance(settings.get("sampling"), dict)]
    return any(sampling.get("mix_above") for sampling in samplings)


def overview(folder: Path, names: list[str], config: DataConfig) -> tuple[Image.Image, str]:
    """The images in the folder, in one picture about as wide as high, and in words how many of them it shows.

    A user has as many lines as it takes; where there are too many images, each user's first ones are shown.
    """
    files = [(label, image_files(folder, name)) for label, name in zip(user_labels(names), names, strict=True)]
    files = [(label, paths) for label, paths in files if paths]
    columns, lines = layout([len(paths) for _, paths in files])
    rows = [
        ("" if line else label, paths[columns * line : columns * (line + 1)])
        for label, paths in files[:GRID_LINES] for line in range(lines) if len(paths) > columns * line
    ]  # fmt: skip
    shown, there = (sum(len(paths) for _, paths in some) for some in (rows, files))
    words = "" if shown == there else f"{shown:,} of the folder's {there:,} images "
    return image_grid([(label, [read_image(path, config) for path in paths]) for label, paths in rows]), words


def layout(counts: list[int]) -> tuple[int, int]:
    """Columns of a picture of so many images of each user, and lines that a user has at most: the fewest columns
    with which it is no higher than wide or than a line for each user."""
    for columns in range(1, GRID_COLUMNS + 1):
        lines = sum(math.ceil(count / columns) for count in counts)
        if lines <= min(max(columns, len(counts)), GRID_LINES):
            return columns, math.ceil(max(counts) / columns)
    return GRID_COLUMNS, max(1, GRID_LINES // len(counts))


def folder_to_judge(
    model: Path, settings: dict, given: Path | None, real: Path, users: list[str]
) -> tuple[Path, Path]:
    """The folder of images of `users` that is given, or the one that train.sample makes, and where its report belongs.

    The report is written beside images that train.sample or train.augment made; any others, such as those of another
    program, are judged as they are, and nothing is written to their folder. UserError where there are no images, the
    `real` ones, or those of another model of ours.
    """
    folder = given or default_folder(model, settings)
    command = f"with python -m train.sample --model {model} --purpose augment"
    made = given or (folder / SETTINGS).is_file()
    require(made, f"{folder}: this model's images are not there yet; make them {command}")
    other = real_path(folder) != real_path(real)
    require(other, f"{folder}: holds the real images; give the folder of generated ones as --images")
    there = any(path.suffix.lower() in SUFFIXES for user in users for path in located(folder, user).glob("*"))
    require(there, f"{folder}: holds no image of a user of {model}; make some {command}")
    files = [folder / name for name in (SETTINGS, AUGMENTED) if (folder / name).is_file()]
    theirs = next((made_with for made_with in map(read_json, files) if "weights" in made_with), None)
    if not theirs:  # another program's images, whatever its settings.json holds
        return folder, run_of(model) / "evaluations" / real_path(folder).name
    same = all(theirs.get(key) == settings[key] for key in settings if key not in ("seed", "sampling"))
    require(same, f"{folder}: holds images that another model made than {model}; give theirs as --model, or make new "
            f"ones {command}")
    return folder, folder
