"""The folder of a run: one experiment in it, its config and split beside its results."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from train.base import processes as parallel
from train.base.errors import UserError
from train.base.files import replacing
from train.config import load as strict_yaml
from train.config.schema import Config
from train.data.dataset import DataConfig, UserImages
from train.data.split import Split, load_split, make_split

CONFIG, SPLIT, LOCK = "config.yaml", "split.json", ".lock"
MADE_BY = "# python -m train."
SECTIONS = {
    "vae": ("seed", "data", "vae", "vae_loss", "vae_training"),
    "ldm": ("seed", "data", "latents", "user_encoder", "unet", "schedule", "ldm_loss", "ldm_training"),
}
# What may change while a run goes on: how long, how often, how the work is cut, and where things are; and the
# learning rate, since to lower it is what a run needs whose loss is not finite any more.
SAFE = {
    "num_epochs", "max_hours", "sample_interval", "save_interval", "keep_checkpoints", "auto_batch",
    "gradient_checkpointing", "shard_optimizer", "ema_on_cpu", "output_dir", "dir", "vae_path", "learning_rate",
}  # fmt: skip
CUT = {"batch_size", "gradient_accumulation_steps"}  # safe as long as their product stays


def open_run(folder: Path, config: Config, stage: str) -> None:
    """Make the folder, or see that what is in it is this very run; write the config into it, and say what is new."""
    differing = refuse_other_run(folder, config, stage)
    if differing:
        training = getattr(config, f"{stage}_training")
        longer = any("num_epochs" in key for key in differing) and training.optimizer.lr_schedule == "cosine"
        rate = "; the learning rate is from here on that of a run of the new length" if longer else ""
        print(f"{folder}: goes on with another config: {'; '.join(differing)}{rate}", file=sys.stderr)
    save_config(config, folder, stage)


def refuse_other_run(folder: Path, config: Config, stage: str) -> list[str]:
    """UserError where the folder holds something else, or a run whose config differs in what decides its results.

    In what else it differs is the answer, a phrase for each key: with that a run may go on.
    Nothing is written: a run that does not come to its first step leaves no folder that the next try must respect.
    """
    if folder.resolve().is_relative_to(Path(config.data.dir).resolve()):
        raise UserError(
            f"{folder}: lies within data.dir {config.data.dir}, where it would count as a user; use another output_dir"
        )
    path = folder / CONFIG
    if path.is_file():
        saved = strict_yaml.load(Config, path)
        made_by = path.read_text(encoding="utf-8").partition("\n")[0]
        if made_by.startswith(MADE_BY) and made_by != MADE_BY + stage:
            command = made_by.removeprefix("# ")
            raise UserError(f"{folder}: holds a run of {command}; use another output_dir")
        before, now = _flat(saved, stage), _flat(config, stage)
        section = f"{stage}_training"
        safe = SAFE | CUT if getattr(saved, section).window == getattr(config, section).window else SAFE
        differing = {key: f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if before[key] != now[key]}
        refused = [shown for key, shown in differing.items() if key.split(".")[-1] not in safe]
        if refused:
            raise UserError(
                f"{folder}: holds a run of another config ({'; '.join(refused[:3])}{'; ...' if refused[3:] else ''}); "
                "use another output_dir, or the config of that run"
            )
        return list(differing.values())
    if not is_free(folder):
        raise UserError(f"{folder}: is not empty and not the folder of a {stage} run; use another output_dir")
    return []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While entered, no other run can be in the folder, which is made; the system unlocks it when a process dies.

    Of the processes of one run the first holds the lock. UserError, in all of them, where another run does.
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
                raise UserError(
                    f"{folder}: another process is training in it; wait for it, or use another output_dir"
                ) from None
            except OSError:
                pass  # a file system without locks, as some of a network

        parallel.on_main(lock)
        yield


def is_free(folder: Path) -> bool:
    """Whether a folder can be made of this path, or there is one with nothing but hidden files in it."""
    return not folder.exists() or (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir()))


def save_config(config: Config, folder: Path, stage: str | None = None) -> None:
    """Write the resolved config; `stage` notes in its first line which command the folder belongs to."""
    with replacing(folder / CONFIG) as temporary:
        heading = f"{MADE_BY}{stage}\n" if stage else ""
        temporary.write_text(heading + strict_yaml.dump(config), encoding="utf-8")


def shared_split(data: UserImages, config: DataConfig, folder: Path, vae_folder: Path | None = None) -> Split:
    """The split of this run: its own from before, else its VAE's, else a new one."""
    places = [place / SPLIT for place in (folder, vae_folder) if place is not None]
    saved = next((path for path in places if path.is_file()), None)
    return load_split(saved, data, config) if saved else make_split(data, config)


def _flat(config: Config, stage: str) -> dict[str, object]:
    """Every value that the stage depends on, by its dotted name."""
    flat: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", {section: value for section, value in asdict(config).items() if section in SECTIONS[stage]})
    return flat
