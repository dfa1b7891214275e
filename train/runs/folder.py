"""The folder of a run, which holds the config, the split and the results of one experiment."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from train.base.errors import UserError, require
from train.base.files import real_path, replacing
from train.base.processes import on_main
from train.config.schema import Config
from train.config.sections import DataConfig
from train.data.dataset import UserImages
from train.data.split import Split, adapt_split, load_split, make_split

CONFIG, SPLIT, LOCK = "config.yaml", "split.json", ".lock"
MODEL_FILES = ("config.json", "users.json")  # the former in a saved VAE, the latter in a saved LDM
MADE_BY = "# python -m train."
SECTIONS = {
    "vae": ("seed", "data", "vae", "vae_loss", "vae_training"),
    "ldm": ("seed", "data", "latents", "user_encoder", "unet", "schedule", "ldm_loss", "ldm_training"),
}
LENGTH = {"num_epochs", "num_steps"}
# Keys that may change when a run is resumed: how long, how often, how the work is divided, and where things are; and
# the learning rate, which has to be lowered when the loss is no longer finite.
SAFE = LENGTH | {
    "max_hours", "sample_interval", "save_interval", "keep_checkpoints", "auto_batch", "lean_activations", "compile",
    "gradient_checkpointing", "shard_optimizer", "ema_on_cpu", "output_dir", "dir", "vae_path", "init_from",
    "learning_rate", "fused",
}  # fmt: skip
CUT = {"batch_size", "gradient_accumulation_steps"}  # safe as long as their product stays the same


def open_run(folder: Path, config: Config, stage: str) -> None:
    """Make the folder, or check that it holds this run; write the config into it, and report what has changed."""
    differing = refuse_other_run(folder, config, stage)
    if differing:
        cosine = config.training(stage).optimizer.lr_schedule == "cosine"
        longer = cosine and any(key in said for key in LENGTH for said in differing)
        rate = "; the learning rate is from here on that of a run of the new length" if longer else ""
        print(f"{folder}: goes on with another config: {'; '.join(differing)}{rate}", file=sys.stderr)
    save_config(config, folder, stage)


def refuse_other_run(folder: Path, config: Config, stage: str) -> list[str]:
    """UserError where the folder holds something else, or a run whose config differs in what decides its results.

    Returns the differences with which the run may go on, a phrase for each key. Nothing is written, so a run that is
    refused before its first step leaves no folder behind.
    """
    inside = real_path(folder).is_relative_to(real_path(Path(config.data.dir)))
    require(not inside, f"{folder}: lies within data.dir {config.data.dir}, where it would count as a user; "
            "use another output_dir")
    model = next((place for place in [folder, *folder.absolute().parents] if is_model(place)), None)
    require(model is None, f"{folder}: is the saved model {model}, or lies within it, where no run belongs; use "
            "another output_dir")
    path = folder / CONFIG
    if not path.is_file():
        free = is_free(folder)
        require(free, f"{folder}: is not empty and not the folder of a {stage} run; use another output_dir")
        return []
    saved = Config.read(path)
    made_by = _made_by(folder)
    require(made_by in ("", MADE_BY + stage),
            f"{folder}: holds a run of {made_by.removeprefix('# ')}; use another output_dir")
    before, now = _flat(saved, stage), _flat(config, stage)
    same_batch = saved.training(stage).images_per_step == config.training(stage).images_per_step
    safe = SAFE | CUT if same_batch else SAFE
    differing = {key: f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if before[key] != now[key]}
    refused = [shown for key, shown in differing.items() if key.split(".")[-1] not in safe]
    require(not refused, f"{folder}: holds a run of another config ({'; '.join(refused[:3])}"
            f"{'; ...' if refused[3:] else ''}); use another output_dir, or the config of that run")
    return list(differing.values())


def is_model(folder: Path) -> bool:
    """Whether this is the `final_model` of a run, which has a config and a split as the run's folder has."""
    of_model = any((folder / name).is_file() for name in MODEL_FILES)
    return of_model and all((folder / name).is_file() for name in (CONFIG, SPLIT)) and not _made_by(folder)


def _made_by(folder: Path) -> str:
    """The first line of its config, where that says which command made the folder, as the earliest runs do not."""
    with open(folder / CONFIG, encoding="utf-8", errors="replace") as file:
        first = file.readline().rstrip("\n")
    return first if first.startswith(MADE_BY) else ""


@contextmanager
def locked(folder: Path, work: str = "training") -> Iterator[None]:
    """While entered, no other command can use the folder, which is made; the system unlocks it when a process dies.

    The first process of a run holds the lock. UserError, in all of its processes, where another run holds it.
    """
    with ExitStack() as held:

        def lock() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(open(folder / LOCK, "w"))
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = f"{folder}: another process is {work} in it; wait for it, or use another output_dir"
                raise UserError(said) from None
            except OSError:
                pass  # a file system without locks, such as some network file systems

        on_main(lock)
        yield


def is_free(folder: Path) -> bool:
    """Whether nothing is at this path, or a folder with nothing but hidden files in it."""
    free = not os.path.lexists(folder)  # where a link leads nowhere, or in a circle, no folder can be made
    return free or (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir()))


def save_config(config: Config, folder: Path, stage: str | None = None) -> None:
    """Write the resolved config; with `stage`, its first line says which command made the folder."""
    with replacing(folder / CONFIG) as temporary:
        heading = f"{MADE_BY}{stage}\n" if stage else ""
        temporary.write_text(heading + config.as_yaml(), encoding="utf-8")


def shared_split(
    data: UserImages, config: DataConfig, own: Path, of_vae: Path | None = None, begun_from: Path | None = None
) -> Split:
    """The split in a run's own folder; else that of its VAE, as far as it knows the images; else a new one.

    `begun_from` is that of the LDM whose weights the run is about to begin with, so that nothing is its own yet.
    """
    if own.is_file() and not begun_from:
        return load_split(own, data, config)
    before = [of_vae] if of_vae and of_vae.is_file() else []
    before += [begun_from] if begun_from else []
    return adapt_split([*dict.fromkeys(before)], data, config, bool(begun_from)) if before else make_split(data, config)


def _flat(config: Config, stage: str) -> dict[str, object]:
    """Every value of the sections that the stage depends on, by its dotted key."""

    def walk(key: str, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            return {key: value}
        return {dotted: leaf for name, inner in value.items() for dotted, leaf in walk(f"{key}.{name}", inner).items()}

    sections = {section: value for section, value in asdict(config).items() if section in SECTIONS[stage]}
    return {dotted.removeprefix("."): leaf for dotted, leaf in walk("", sections).items()}
