"""The command line that every `python -m train.X` shares: a config file, flags on top of it, errors in a sentence."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from train.base import processes as parallel
from train.base.errors import UserError, nearest, one_line
from train.config import load as strict_yaml
from train.config.schema import Config
from train.engine.stopping import Stopped

DEFAULT_CONFIG = strict_yaml.CONFIGS / "medium.yaml"
# What the commands that look at a trained model use of the flags below. They take the others, and do not list them.
USED = {"sample": ("batch_size", "output_dir"), "evaluate": ("data_dir",)}


def flag_keys(stage: str) -> dict[str, tuple[str, ...]]:
    """What each flag sets in the config, for the training `stage` ("vae" or "ldm") that it speaks of."""
    training = f"{stage}_training"
    return {
        "data_dir": ("data.dir",),
        "vae_path": ("latents.vae_path",),
        "resolution": ("data.resolution",),
        "batch_size": (f"{training}.batch_size",),
        "gradient_accumulation_steps": (f"{training}.gradient_accumulation_steps",),
        "num_epochs": (f"{training}.num_epochs",),
        "learning_rate": (f"{training}.optimizer.learning_rate",),
        "cross_attention_dim": ("unet.cross_attention_dim", "user_encoder.dim"),
        "mixed_precision": (f"{training}.mixed_precision",),
        "sample_interval": (f"{training}.sample_interval",),
        "save_interval": (f"{training}.save_interval",),
        "max_hours": (f"{training}.max_hours",),
        "output_dir": (f"{training}.output_dir",),
    }


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the flags, where argparse alone lists all that there are."""

    def __init__(self, command: str, description: str):
        super().__init__(
            prog=f"python -m train.{command}", description=description, allow_abbrev=False, formatter_class=Formatter,
        )  # fmt: skip
        self.add_argument("--debug", action="store_true", help="show where an error was raised")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args)
        if unknown:
            word = unknown[0].partition("=")[0]
            raise UserError(f"{word}: is not a flag{nearest(word, self._option_string_actions)}; --help lists them")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser(command: str, description: str, stage: str) -> Parser:
    parser = Parser(command, description)
    default = "config.yaml of the model" if command in USED else f"configs/{DEFAULT_CONFIG.name}"
    parser.add_argument("--config", type=Path, default=None, help=f"YAML file (default: {default})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value of the config"
    )
    for flag, keys in flag_keys(stage).items():
        names = dict.fromkeys([f"--{flag}", f"--{flag.replace('_', '-')}"])
        means = meaning(keys)
        if flag not in USED.get(command, (flag,)):
            means = argparse.SUPPRESS
        elif (command, flag) == ("sample", "output_dir"):
            means = "folder of the images (default: generated/ beside the model)"
        parser.add_argument(*names, dest=flag, default=None, help=means)
    return parser


def meaning(keys: tuple[str, ...]) -> str:
    """What a flag that sets these keys says in --help, as in "sets sampling.steps (a whole number)"."""
    return f"sets {' and '.join(keys)} ({strict_yaml.describe(Config, keys[0])})"


def read_config(
    args: argparse.Namespace, stage: str, default: Path = DEFAULT_CONFIG, more: dict[str, tuple[str, ...]] | None = None
) -> Config:
    """The config file with the flags (`more`: a command's own), and then every `--set`, on top of it."""
    overrides = [
        (f"--{flag} {value}", key, value)
        for flag, keys in (flag_keys(stage) | (more or {})).items()
        if (value := getattr(args, flag)) is not None
        for key in keys
    ]
    for source, _, value in overrides:
        if not value:  # as of a shell variable that is not set
            raise UserError(f"{source.strip()}: needs a value, not an empty one")
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting}: must be SECTION.KEY=VALUE")
        overrides.append((f"--set {setting}", key, value))
    return strict_yaml.load(Config, args.config or default, overrides)


def run(main: Callable[[list[str] | None], int | None]) -> None:
    """Run a command; bad input ends it with one sentence and exit status 2.

    A training that was asked to stop exits with 128 + the signal's number, or 75 at the end of max_hours.
    """
    try:
        with parallel.processes():
            try:
                status = main(None)
            except Stopped as stopped:
                print(stopped, file=sys.stderr)
                status = stopped.status
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:  # OSError: what the system refuses, such as to write onto a full disk
        if "--debug" in sys.argv:
            raise
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(one_line(f"error: {where}{getattr(error, 'strerror', None) or error}"), file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:  # of a card, of torch on the CPU, of Python
        sentence = out_of_memory(error)
        if "--debug" in sys.argv or not sentence:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def out_of_memory(error: Exception) -> str:
    """A sentence for memory that ran out, of a card, of torch on the CPU or of Python; "" for any other error."""
    cpu = "DefaultCPUAllocator: "
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and cpu not in str(error):
        return ""
    reason = str(error).rpartition(cpu)[2].partition("\n")[0]
    return f"out of memory: {reason}; python -m train.memcheck shows what takes how much"
