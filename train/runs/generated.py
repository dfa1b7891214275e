"""A folder of generated images: `USER/generated_000.png`, ..., and the settings that made them, `settings.json`."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from train.base.errors import require
from train.base.files import read_json, real_path, tensors_hash, write_json
from train.config.sections import DataConfig, GenerationConfig
from train.data.images import SUFFIXES, read_image
from train.runs.final_model import TrainedLDM
from train.runs.folder import is_free
from train.runs.pictures import image_grid, user_labels

SETTINGS = "settings.json"
AUGMENTED = "augmented.json"  # the same of an augmented data set (train/runs/augmented.py)
SEED = 0  # where none is given
MOST_IMAGES = 100_000  # of each user
GRID_USERS, GRID_IMAGES = 31, 30


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
    return model.parent / "generated" / name


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
    return {(user, number): folder / names[user] / f"generated_{number:03d}.png" for user, number in images}


def image_files(folder: Path, user: str) -> list[Path]:
    return sorted((folder / user).glob("*.png"))


def overview(folder: Path, names: list[str], config: DataConfig) -> Image.Image:
    """The images in the folder, a row for each user: at most 31 users, and 30 images of each."""
    rows = [(label, image_files(folder, name)) for label, name in zip(user_labels(names), names, strict=True)]
    shown = [(label, files[:GRID_IMAGES]) for label, files in rows if files][:GRID_USERS]
    return image_grid([(label, [read_image(path, config) for path in files]) for label, files in shown])


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
    there = any(path.suffix.lower() in SUFFIXES for user in users for path in (folder / user).glob("*"))
    require(there, f"{folder}: holds no image of a user of {model}; make some {command}")
    made_with = next((folder / name for name in (SETTINGS, AUGMENTED) if (folder / name).is_file()), None)
    if not made_with:
        return folder, model.parent / "evaluations" / real_path(folder).name
    theirs = read_json(made_with)
    same = all(theirs.get(key) == settings[key] for key in settings if key not in ("seed", "sampling"))
    require(same, f"{folder}: holds images that another model made than {model}; give theirs as --model, or make new "
            f"ones {command}")
    return folder, folder
