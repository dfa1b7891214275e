"""Commands in processes of their own, killed before a change that they make to the disk, or at a moment."""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from train.config import cli
from train.engine import run

LIMIT = 600  # seconds after which a process that does not end is taken to hang
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link")  # with "open" for writing; of sys.audit
CHANGES_LOG = "changes.txt"
processes = multiprocessing.get_context("forkserver")  # children that have torch already, and no threads
processes.set_forkserver_preload(["train.vae", "train.ldm", "train.sample", "train.evaluate", "train.simulate"])


@dataclass(frozen=True, eq=False)
class Running:
    """A command at work in its folder."""

    process: BaseProcess
    folder: Path
    earlier: int  # changes of the commands before it
    began: float

    def finish(self) -> None:
        """Wait for its end; AssertionError where that is not a good one."""
        self.process.join(LIMIT)
        if self.process.exitcode != 0:
            self.process.kill()
            raise AssertionError(f"exit code {self.process.exitcode}, see {self.folder / 'output.txt'}")

    @property
    def was_killed(self) -> bool:
        self.process.join(LIMIT)
        return self.process.exitcode == -signal.SIGKILL

    @property
    def changes(self) -> list[str]:
        """All that it has begun, as in "os.rename run/.final_model.tmp"."""
        return changes_in(self.folder)[self.earlier :]

    @property
    def place(self) -> str:
        """The last change that was begun, with # for numbers."""
        return re.sub(r"[0-9]+", "#", "".join(self.changes[-1:])) or "before it changed anything"


def changes_in(folder: Path) -> list[str]:
    log = folder / CHANGES_LOG
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def start(name: str, arguments: list[str], folder: Path, kill_before: int = 0) -> Running:
    """`train.<name>` with `folder` as its working directory; it kills itself before a change of this number, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    process = processes.Process(target=_command, args=(name, arguments, folder, kill_before))
    running = Running(process, folder, len(changes_in(folder)), time.monotonic())
    process.start()
    return running


def kill_somewhere(
    name: str, arguments: list[str], folder: Path, rng: random.Random, changes: int, seconds: float
) -> tuple[Running, bool]:
    """Start the command, and kill it before one of so many changes, or within so many seconds; and whether that hit."""
    if rng.random() < 0.5:
        running = start(name, arguments, folder, rng.randint(1, changes))
    else:
        running = start(name, arguments, folder)
        running.process.join(rng.uniform(0, seconds))
        running.process.kill()
    killed = running.was_killed
    if not killed:
        running.finish()
    return running, killed


def _command(name: str, arguments: list[str], folder: Path, kill_before: int) -> None:
    os.chdir(folder)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    sys.argv[1:] = arguments
    run.native_precision = lambda device, precision: precision  # fp16 on the CPU too: the loss scale is to be seen
    command = importlib.import_module(f"train.{name}")
    with open("output.txt", "a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        sys.addaudithook(_counting(folder, kill_before))
        cli.run(lambda _: command.main(arguments))


def _counting(folder: Path, kill_before: int) -> Callable[[str, tuple], None]:
    """An audit hook, which Python calls before each change to the disk."""
    log, count = os.open(folder / CHANGES_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT), itertools.count(1)

    def hook(event: str, args: tuple) -> None:
        if event not in CHANGES and not (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = os.path.abspath(os.fsdecode(args[0])) if isinstance(args[0], str | bytes | Path) else ""
        if path.startswith(f"{folder}/"):
            os.write(log, f"{event} {path.removeprefix(f'{folder}/')}\n".encode())
            if next(count) == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
