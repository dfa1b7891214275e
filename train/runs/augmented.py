"""An augmented data set: a folder of the layout of the user's own, with real training images and generated ones.

    USER/any_name.png           a real image, under its own name
    USER/generated_000.png      a generated one, as train.sample names it
    manifest.csv                what each file is
    left_out.csv                with sifting: the generated images that are not here, and why
    augmented.json              all that decides which files are here
    evaluation.json, ...        the judge's report, where there is one

A real image that is named like a generated one is called `real_generated_000.png` here. Images are hard links where
the file system allows it, so they take no space, and whoever changes one in place changes the original.
"""

import csv
import os
import re
import shutil
from pathlib import Path

from PIL import Image

from train.base.errors import require
from train.base.files import as_json, as_written, kept_in, read_json, real_path, replacing, write_json
from train.base.folders import filling
from train.base.names import composed, located
from train.base.progress import progress
from train.runs.folder import locked
from train.runs.generated import AUGMENTED, SETTINGS, default_folder, refuse_others, refuse_within
from train.runs.so_far import run_of

MANIFEST, LEFT_OUT = "manifest.csv", "left_out.csv"
COLUMNS = (
    "file", "user", "kind", "seed", "sampler", "steps", "guidance", "mix_above", "probability", "nearest_distance",
    "copy",
)  # fmt: skip
REAL, GENERATED = "real", "generated"  # what `kind` says
EVALUATION = "evaluation.json"
PAGE, PICTURE = "report.html", "generated_and_real.png"
REPORT = (PAGE, PICTURE, EVALUATION)  # in this order


def default_augmented(model: Path, settings: dict, per_user: int, sift: bool) -> Path:
    """A folder beside the model, named after that of the generated images, how many, and whether sifted."""
    made = default_folder(model, settings).name
    return run_of(model) / "augmented" / f"{made}_{per_user}_per_user{'_sifted' if sift else ''}"


def claim_folders(real: Path, images: Path, settings: dict, folder: Path, origin: dict) -> None:
    """Claim the folder of the generated images, and that of the data set, with all that decides what is in them.

    UserError where one of them holds anything else, or lies within the other, or within the `real` one.
    """
    a, b = real_path(folder), real_path(images)
    apart = not a.is_relative_to(b) and not b.is_relative_to(a)
    require(apart, f"{folder}: and the folder of the generated images by themselves, {images}, lie in each other; give "
            "others as --output_dir and --images")
    for one in (images, folder):
        refuse_within(real, one)
    refuse_others(images / SETTINGS, settings, "one of generated images", "give another as --images")
    refuse_others(folder / AUGMENTED, origin, "an augmented data set", "give another --output_dir")
    write_json(folder / AUGMENTED, origin)
    write_json(images / SETTINGS, settings)


def real_files(paths: list[str], folder: Path) -> dict[str, Path]:
    """Where real images of a data folder go, `USER/name`, and where they are; `paths` are relative to the folder."""
    taken = set(paths)
    return {_own_name(path, taken): located(folder, path) for path in paths}


def _own_name(path: str, taken: set[str]) -> str:
    user, _, name = path.partition("/")
    if not re.fullmatch(r"generated_\d+\.png", name, re.IGNORECASE):
        return path
    while f"{user}/{name}" in taken:
        name = f"real_{name}"
    return f"{user}/{name}"


def build(folder: Path, files: dict[str, Path], manifest: list[dict], left_out: list[dict] | None) -> None:
    """Put the files, which are where `files` says, and the tables into the folder; the manifest comes last."""
    with filling(folder, [folder / file for file in files]):
        for file, source in progress(files.items(), desc="collecting", unit="file", leave=False):
            _link_or_copy(source, folder / file)
        for path in folder.glob("*/generated_*.png"):  # of an interrupted run that judged by another number of threads
            if path.relative_to(folder).as_posix() not in files:
                path.unlink()
        if left_out is not None:
            _write_table(folder / LEFT_OUT, (*COLUMNS, "why"), left_out)
        _write_table(folder / MANIFEST, COLUMNS, manifest)


def _link_or_copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)  # of a killed process: a link to an original, not to be written through
        try:
            os.link(real_path(source), temporary)  # resolved, since a link to a relative link would lead nowhere
        except OSError:
            shutil.copyfile(source, temporary)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def generated_only(folder: Path, paths: list[str]) -> list[int]:
    """Which of these files in a folder are generated: in an augmented data set not all, in any other folder all.

    UserError where a data set is not complete, or its manifest is none any more.
    """
    if not (folder / AUGMENTED).is_file():
        return list(range(len(paths)))
    require((folder / MANIFEST).is_file(), f"{folder}: is not complete; run the same train.augment again")
    instead = "delete it and run the same train.augment again (UTF-8, commas, the columns file and kind)"
    with (
        as_written(folder / MANIFEST, instead),
        open(folder / MANIFEST, newline="", encoding="utf-8-sig") as file,  # spreadsheets put a mark in front
    ):
        made = {composed(row["file"]) for row in csv.DictReader(file) if row["kind"] == GENERATED}
    rows = [row for row, path in enumerate(paths) if path in made]
    require(rows, f"{folder}: no generated image is left in it; there is nothing to judge")
    return rows


def save_report(folder: Path, judged: dict, page: str, picture: Image.Image) -> None:
    """Write all that the judge leaves; where the `evaluation.json` is, the others are of the same judgement."""
    with (
        locked(folder, "writing"),
        replacing(folder / EVALUATION) as evaluation,  # the last to take its place
        replacing(folder / PICTURE) as shown,
        replacing(folder / PAGE) as report,
    ):
        evaluation.write_text(as_json(judged), encoding="utf-8")
        picture.save(shown, format="PNG")
        report.write_text(page, encoding="utf-8")
        (folder / EVALUATION).unlink(missing_ok=True)  # of an earlier judgement


def report_of(folder: Path, key: str) -> dict | None:
    """The judgement that lies in the folder, if it is the one with this key."""
    return kept_in(folder / EVALUATION, lambda there: there if there.get("of") == key else None)


def bring_report(images: Path | None, folder: Path) -> dict | None:
    """The judgement that lies in the folder, copied from beside the images unless the folder was judged itself.

    None where neither was judged; no `images`, where those are others.
    """
    own = folder / EVALUATION
    if own.is_file() and real_path(Path(str(read_json(own).get("images")))) == real_path(folder):
        return read_json(own)
    if not images or not (images / EVALUATION).is_file():
        return None
    own.unlink(missing_ok=True)  # comes last again: where it is, the others are its own
    for name in REPORT:
        if (images / name).is_file():
            _link_or_copy(images / name, folder / name)
    return read_json(own)
