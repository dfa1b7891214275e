"""The folder of a run: one experiment in it, its config and split beside its results."""

from dataclasses import asdict
from pathlib import Path

from train import strict_yaml
from train.config import Config
from train.data import DataConfig, UserImages
from train.errors import UserError
from train.files import replacing
from train.split import Split, load_split, make_split, save_split

CONFIG, SPLIT = "config.yaml", "split.json"
SECTIONS = {
    "vae": ("seed", "data", "vae", "vae_loss", "vae_training", "latents.vae_path"),
    "ldm": ("seed", "data", "latents", "user_encoder", "unet", "schedule", "ldm_loss", "ldm_training"),
}
# What may change while a run goes on: how long, how often, and where things are.
SAFE = {"num_epochs", "sample_interval", "save_interval", "keep_checkpoints", "output_dir", "dir", "vae_path"}


def open_run(folder: Path, config: Config, stage: str) -> None:
    """Make the folder, or see that what is in it is this very run; write the config into it.

    UserError where the folder holds something else, or a run whose config differs in what decides its results.
    """
    path = folder / CONFIG
    if path.is_file():
        before, now = (_flat(c, stage) for c in (strict_yaml.load(Config, path), config))
        differing = [key for key in now if before.get(key) != now[key] and key.split(".")[-1] not in SAFE]
        if differing:
            shown = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in differing[:3])
            raise UserError(
                f"{folder}: holds a run of another config ({shown}{'; ...' if differing[3:] else ''}); "
                "use another output_dir, or the config of that run"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty and not the folder of a {stage} run; use another output_dir")
    save_config(config, folder)


def save_config(config: Config, folder: Path) -> None:
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(strict_yaml.dump(config), encoding="utf-8")


def shared_split(data: UserImages, config: DataConfig, folder: Path, vae_folder: Path | None = None) -> Split:
    """The split of this run: its own from before, else its VAE's, else a new one; saved in the run's folder."""
    places = [place / SPLIT for place in (folder, vae_folder) if place is not None]
    saved = next((path for path in places if path.is_file()), None)
    split = load_split(saved, data, config) if saved else make_split(data, config)
    save_split(folder / SPLIT, split, data, config)
    return split


def _flat(config: Config, stage: str) -> dict[str, object]:
    """Every value that the stage depends on, by its dotted name."""
    flat: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", asdict(config))
    return {k: v for k, v in flat.items() if any(k == s or k.startswith(f"{s}.") for s in SECTIONS[stage])}
