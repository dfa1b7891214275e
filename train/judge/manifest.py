"""Write an augmented data set, and say what is in it."""

from collections import Counter
from pathlib import Path

from train.base.errors import some
from train.base.files import as_written
from train.base.units import counted, percent
from train.judge.augmented import COPY, SOMEBODY_ELSE, Choice
from train.runs.augmented import GENERATED, REAL, build
from train.runs.generated import image_paths


def write_data_set(
    folder: Path, real: dict[str, Path], images: Path, names: list[str], settings: dict, choice: Choice
) -> list[str]:
    """Real images go to the keys of `real`, generated ones are taken from `images`, and made with these settings.

    Returns what is to be said of them, a line each.
    """
    files = dict(real)
    manifest = [{"file": file, "user": file.partition("/")[0], "kind": REAL} for file in real]
    left_out = []
    chosen = choice.left_out()
    sources = image_paths(images, names, chosen)
    for image, why in chosen.items():
        source, seen, user = sources[image], choice.seen[image], names[image[0]]
        file = f"{user}/{source.name}"
        row = {
            "file": file, "user": user, "kind": GENERATED, **settings,
            "probability": f"{seen.probability:.4f}", "nearest_distance": f"{seen.distance:.4f}",
            "copy": "yes" if seen.accused else "no",
        }  # fmt: skip
        if why:
            left_out.append({**row, "why": why})
        else:
            manifest.append(row)
            files[file] = source
    build(folder, files, manifest, left_out if choice.sift else None)
    taken = len(files) - len(real)
    numbers = f"{counted(len(real), 'real image')} and {taken:,} generated of {counted(len(names), 'user')}"
    return [numbers, *found(names, choice)]


def found(names: list[str], choice: Choice) -> list[str]:
    """What the judge says, and what was left out, a line each."""
    reasons = Counter(seen.why_left_out for seen in choice.seen.values())
    looked = counted(len(choice.seen), "generated image")
    said = (f"{percent(reasons[SOMEBODY_ELSE] / len(choice.seen))} of {looked} look more like somebody else to a judge "
            f"of training recordings, {counted(reasons[COPY], 'image')} like a copy of a training image")  # fmt: skip
    if not choice.sift:
        return [f"{said}; --sift leaves them out"]
    taken = Counter(user for (user, _), why in choice.left_out().items() if not why)
    short = [f"{name} ({taken[user]})" for user, name in enumerate(names) if taken[user] < choice.per_user]
    fewer = [f"fewer than {choice.per_user} are left of {some(short, 8)}, since {2 * choice.per_user} of a user are "
             "made at most"]  # fmt: skip
    return [f"{said}; they are left out, and listed in left_out.csv", *(fewer if short else [])]


def verdict(evaluation: dict, path: Path) -> str:
    """Of an `evaluation.json`, which was read from `path`, with the number of images that it is about."""
    with as_written(path, "delete it, and run train.evaluate again"):
        made = counted(evaluation["data"]["generated_images"], "generated image")
        return f"the judge, of {made}: {evaluation['verdict']['held_out']}"
