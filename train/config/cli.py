"""The command line that every `python -m train.X` shares: a config file, flags on top of it, errors in one sentence."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from train.base import processes
from train.base.errors import (
    SEE_MEMCHECK,
    BadArgument,
    Stopped,
    UserError,
    nearest,
    one_line,
    out_of_memory,
    require,
    shortened,
)
from train.base.names import path_of
from train.base.progress import say
from train.base.version import VERSION
from train.config.load import CONFIGS, describe
from train.config.schema import Config, require_one_of_each

DEFAULT_CONFIG = CONFIGS / "medium.yaml"
# Those of the flags below that can matter to a command. It accepts the others, of old scripts, but does not list them.
SHAPES = ("resolution", "batch_size", "cross_attention_dim", "mixed_precision")
OF_A_MODEL = {
    "sample": ("batch_size", "output_dir"), "evaluate": ("data_dir",),
    "augment": ("data_dir", "batch_size", "output_dir"),
}  # fmt: skip
USED = OF_A_MODEL | {"bench": SHAPES, "memcheck": (*SHAPES, "gradient_accumulation_steps")}
UNUSED = {"vae": ("cross_attention_dim",)}
# What --output_dir is to those that write images.
OUTPUT = {
    "sample": "folder of the images (default: generated/ beside the model)",
    "augment": "folder of the data set (default: augmented/ beside the model)",
}
# The config keys of the flags that commands have which generate images, or train an LDM.
SAMPLING = {flag: (f"sampling.{flag}",) for flag in ("sampler", "steps", "guidance")}
BEGINNING = {"init_from": ("ldm_training.init_from",)}


def flag_keys(stage: str) -> dict[str, tuple[str, ...]]:
    """The config keys that each flag sets. `stage` is "vae" or "ldm", whose training they are of, or "sample"."""
    training = "vae_training" if stage == "vae" else "ldm_training"
    return {
        "data_dir": ("data.dir",),
        "vae_path": ("latents.vae_path",),
        "resolution": ("data.resolution",),
        "batch_size": ("sampling.batch_size" if stage == "sample" else f"{training}.batch_size",),
        "gradient_accumulation_steps": (f"{training}.gradient_accumulation_steps",),
        "num_epochs": (f"{training}.num_epochs",),
        "num_steps": (f"{training}.num_steps",),
        "learning_rate": (f"{training}.optimizer.learning_rate",),
        "cross_attention_dim": ("unet.cross_attention_dim", "user_encoder.dim"),
        "mixed_precision": (f"{training}.mixed_precision",),
        "sample_interval": (f"{training}.sample_interval",),
        "save_interval": (f"{training}.save_interval",),
        "max_hours": (f"{training}.max_hours",),
        "output_dir": (f"{training}.output_dir",),
    }


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        there = action.default or (action.default == 0 and action.default is not False)
        return super()._get_help_string(action) if there else action.help


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the flags; argparse alone would list all of them as well."""

    def __init__(self, command: str, text: str | None):
        """`text` is the command's docstring, whose first line describes it; there is none with PYTHONOPTIMIZE=2."""
        super().__init__(
            prog=f"python -m train.{command}", description=(text or "").partition("\n")[0], allow_abbrev=False,
            formatter_class=Formatter,
        )  # fmt: skip
        self.add_argument("--debug", action="store_true", help="show where an error was raised")
        version = f"user-latent-diffusion {VERSION}, torch {torch.__version__}"
        self.add_argument("--version", action="version", version=version, help="show the versions of this and of torch")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args)
        word = unknown[0].partition("=")[0] if unknown else ""
        require(not unknown, f"{word}: is not a flag{nearest(word, self._option_string_actions)}; --help lists them")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def a_path(text: str) -> Path:
    """The type of flags that are paths, and no keys of the config."""
    if not text:  # for example from an unset shell variable
        raise argparse.ArgumentTypeError("needs a value, not an empty one")
    try:
        return path_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def make_parser(command: str, text: str | None, stage: str) -> Parser:
    parser = Parser(command, text)
    default = "config.yaml of the model" if command in OF_A_MODEL else f"configs/{DEFAULT_CONFIG.name}"
    parser.add_argument("--config", type=a_path, default=None, help=f"YAML file (default: {default})")
    more = "change one value of the config"
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=more)
    for flag, keys in flag_keys(stage).items():
        means = meaning(keys)
        if flag not in USED.get(command, (flag,)) or flag in UNUSED.get(command, ()):
            means = argparse.SUPPRESS
        elif flag == "output_dir":
            means = OUTPUT.get(command, means)
        parser.add_argument(*spellings(flag), dest=flag, default=None, help=means)
    return parser


def add_flags(parser: Parser, more: dict[str, tuple[str, ...]]) -> None:
    """A command's own flags, with the config keys that they set."""
    for flag, keys in more.items():
        parser.add_argument(*spellings(flag), dest=flag, help=meaning(keys))


def spellings(flag: str) -> dict[str, None]:
    return dict.fromkeys([f"--{flag}", f"--{flag.replace('_', '-')}"])


def meaning(keys: tuple[str, ...]) -> str:
    """The help of a flag that sets these keys, as in "sets sampling.steps (a whole number)"."""
    return f"sets {' and '.join(keys)} ({describe(Config, keys[0])})"


def read_config(
    args: argparse.Namespace, stage: str, default: Path = DEFAULT_CONFIG, more: dict[str, tuple[str, ...]] | None = None
) -> Config:
    """The config file, changed by the flags (`more` are a command's own) and then by every `--set`."""
    overrides = [
        (f"--{flag} {value}", key, value)
        for flag, keys in (flag_keys(stage) | (more or {})).items()
        if (value := getattr(args, flag)) is not None
        for key in keys
    ]
    for source, _, value in overrides:
        require(value, f"{source.strip()}: needs a value, not an empty one")  # such as a shell variable that is not set
    require_one_of_each(overrides)
    for setting in args.set:
        key, equals, value = setting.partition("=")
        require(equals and key, f"--set {setting}: must be SECTION.KEY=VALUE")
        overrides.append((f"--set {setting}", key, value))
    return Config.read(args.config or default, overrides)


@contextmanager
def naming_flags(**flags: str) -> Iterator[None]:
    """While entered, what is said of a function's argument is said of its flag; `flags` are those of other names."""
    try:
        yield
    except BadArgument as error:
        argument, _, said = str(error).partition(" ")
        raise UserError(f"--{flags.get(argument, argument)} {said}") from error


def gives_guidance(args: argparse.Namespace) -> bool:
    """Whether a flag or a setting of the command line says which guidance to use."""
    flag = getattr(args, "guidance", None) is not None
    return flag or any(setting.startswith("sampling.guidance=") for setting in args.set)


def run(main: Callable[[list[str] | None], int | None]) -> None:
    """Run a command; bad input ends it with one sentence and exit status 2.

    A training that was asked to stop exits with 128 + the signal's number, or 75 at the end of max_hours.
    """
    make_printable()
    try:
        with processes.joined():
            try:
                status = main(None)
                sys.stdout.flush()
            except Stopped as stopped:
                say(str(stopped), sys.stderr)  # a terminal that has been closed is a reason to stop
                status = stopped.status
        sys.exit(status)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError, UnicodeEncodeError, RuntimeError, MemoryError) as error:
        sentence = in_a_sentence(error)
        if "--debug" in sys.argv or not sentence:
            raise
        say(f"error: {sentence}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def make_printable() -> None:
    """Let names of users and files be printed where the console has not their letters, or there is no console."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open to the end)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # not what a notebook has in its place
            stream.reconfigure(errors="backslashreplace")


def in_a_sentence(error: Exception) -> str:
    """What the user is told about bad input, an error of the system or memory that ran out; "" for a bug."""
    if isinstance(error, UserError | OSError):  # an error of the system is such as a full disk
        where = f"{error.filename}: " if getattr(error, "filename", None) else ""
        return one_line(shortened(f"{where}{getattr(error, 'strerror', None) or error}"))
    if isinstance(error, UnicodeEncodeError):  # of a file's name, where the system's language is none
        return one_line(shortened(f"{error.object}: cannot be written in {error.encoding}; set PYTHONUTF8=1"))
    reason = out_of_memory(error)
    return reason and f"{reason}; {SEE_MEMCHECK}"
