"""The augmented data set: real training images and generated ones in a folder of the layout of the user's own."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from train.api.user_diffusion import UserDiffusion, whole
from train.base.files import tensors_hash
from train.base.names import path_of
from train.base.processes import joined, on_main, require_agreement
from train.config.schema import Config
from train.data.split import numbers_of_recordings, training_images
from train.engine.device import pick_device
from train.judge.augmented import Choice, Judge, read_made
from train.judge.manifest import verdict, write_data_set
from train.judge.material import labelled, real_images
from train.runs.augmented import (
    EVALUATION,
    LEFT_OUT,
    MANIFEST,
    bring_report,
    claim_folders,
    default_augmented,
    real_files,
)
from train.runs.final_model import split_path, trained_users
from train.runs.folder import locked
from train.runs.generated import MOST_IMAGES, SEED, default_folder, image_paths, settings_of
from train.stages.generate import fill

HOW = ("sampler", "steps", "guidance", "mix_above")  # keys of `sampling` that the manifest has a column for


@dataclass(frozen=True)
class Augmented:
    """A data set to take home. As text, the last lines of the command."""

    folder: Path
    images: Path
    """Where the generated images are by themselves."""
    said: list[str]
    """What is to be said of them, a line each."""
    judgement: dict | None
    """What is in evaluation.json, where somebody has judged them."""

    @property
    def manifest(self) -> list[dict[str, str]]:
        """What each file is, as in manifest.csv."""
        return table(self.folder / MANIFEST)

    @property
    def left_out(self) -> list[dict[str, str]]:
        """The generated images that sifting leaves out, and why, as in left_out.csv."""
        return table(self.folder / LEFT_OUT)

    def __str__(self) -> str:
        return "\n".join([*self.said, f"the data set is {self.folder}, and {MANIFEST} lists it"])


def table(path: Path) -> list[dict[str, str]]:
    """Its rows; none where there is no such file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@joined()
def augment(
    model: str | PathLike[str], changes: Mapping[str, object] | None = None, *, config: Config | None = None,
    per_user: int | None = None, sift: bool = False, seed: int = SEED, steps: int | None = None,
    guidance: float | None = None, folder: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None, **sampling: object,
) -> Augmented:  # fmt: skip
    """Make the data set of a model in a folder, with `per_user` generated images (None: as many as the user with most
    has real ones) of each.

    `changes` and `config` are those of UserDiffusion.load, and `steps`, `guidance` and other keys of `sampling` those
    of `write`. `sift` leaves out copies and what looks like somebody else, and makes others in their place. `folder`
    is by default one in augmented/ beside the model, and `images`, where the generated ones are by themselves, one in
    generated/. Several processes divide the sampling. UserError, or its BadArgument, where one of these cannot be.
    """
    seed, place = whole("seed", seed, 0), path_of(model)
    names = trained_users(place)
    per_user = max(training_images(split_path(place)).values()) if per_user is None else per_user
    per_user = whole("per_user", per_user, 1, MOST_IMAGES)
    device = pick_device()
    opened = UserDiffusion.load(place, changes, config=config).to(device)
    trained, config = opened.trained, opened.config_with(steps, guidance, "augment", sampling)
    data, split = real_images(place, config)
    real, rows = labelled(data, split.training), split.training.tolist()
    paths = [data.paths[row] for row in rows]

    settings = settings_of(config.sampling, seed, trained)
    require_agreement(lambda: settings)
    made_in = default_folder(place, settings) if images is None else path_of(images)
    output = default_augmented(place, settings, per_user, sift) if folder is None else path_of(folder)
    origin = {"per_user": per_user, "sift": sift, "real_images": tensors_hash([real.images], paths)}
    on_main(lambda: claim_folders(Path(config.data.dir), made_in, settings, output, settings | origin))

    with locked(made_in, "writing"), locked(output, "writing"):
        judge = Judge(real, numbers_of_recordings(data, rows, config.data), len(names), device)
        choice = Choice(len(names), per_user, sift)
        wanted = choice.first
        while wanted:
            made = image_paths(made_in, names, wanted)
            fill(made_in, trained, config.sampling, seed, made)
            wanted = on_main(lambda made=made: choice.look_at(list(made), judge(read_made(made, config.data))))

        def collect() -> Augmented:
            how = {"seed": seed, **{key: getattr(config.sampling, key) for key in HOW}}
            said = write_data_set(output, real_files(paths, Path(config.data.dir)), made_in, names, how, choice)
            report = bring_report(None if sift else made_in, output)
            if report:
                said.append(verdict(report, output / EVALUATION))
            elif not all(choice.left_out().values()):
                said.append(f"do they help? python -m train.evaluate --model {place} --images {output} judges them")
            return Augmented(output, made_in, said, report)

        return on_main(collect)
