"""Networks trained side by side: each of the CPU's threads trains one, since PyTorch computes without Python's lock."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import torch

from train.base.progress import progress
from train.judge.labelled import Labelled
from train.judge.network import Network, enough_steps, new_network, train_network


@dataclass(frozen=True, eq=False)
class Training:
    network: Network
    """Untrained. All are made before the threads begin, since their weights come from torch's own generator."""
    images: Callable[[], Labelled]
    steps: int
    augmented: bool
    seed: int
    then: Callable[[Network], Any]
    """What is wanted of the trained network."""


def train_all(trainings: Sequence[Training], device: torch.device) -> list[Any]:
    """What is wanted of each of the networks, in their order; the longest are trained first."""
    stopped = Event()

    def run(training: Training) -> Any:
        trained = train_network(
            training.network, training.images(), training.steps, training.augmented, training.seed, look
        )
        return training.then(trained)

    with progress(total=sum(t.steps for t in trainings), desc="network", unit="step") as bar:

        def look() -> None:
            if stopped.is_set():  # another training has failed, or the user has pressed Ctrl-C
                raise RuntimeError("stopped")
            bar.update()

        with one_thread_each(device) as pool:
            try:
                longest = sorted(range(len(trainings)), key=lambda at: -trainings[at].steps)
                running = {at: pool.submit(run, trainings[at]) for at in longest}
                for ended in as_completed(running.values()):
                    ended.result()  # raises what it has raised, while others still run
            finally:
                stopped.set()
    return [running[at].result() for at in range(len(trainings))]


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as PyTorch uses, each of which computes with one; of a single one for a GPU."""
    threads = torch.get_num_threads()
    workers = at_once(device)
    try:
        torch.set_num_threads(threads // workers)
        with ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, threads // workers)) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(threads)


def at_once(device: torch.device) -> int:
    """How many networks are trained at once."""
    return 1 if device.type == "cuda" else torch.get_num_threads()


def steps_enough(images: Labelled, num_users: int, seed: int, device: torch.device) -> int:
    """How many steps a network needs to learn from these images, without augmentation."""
    probe = new_network(images.images.shape[1], num_users, seed, device)
    with one_thread_each(device) as pool:
        return pool.submit(enough_steps, probe, images, False, seed).result()


def seconds_per_step(images: Labelled, num_users: int, device: torch.device) -> float:
    """Measured, of all networks that are trained at once together."""
    times: list[float] = []
    probe = new_network(images.images.shape[1], num_users, 0, device)
    with one_thread_each(device) as pool:
        pool.submit(train_network, probe, images, 12, True, 0, lambda: times.append(time.perf_counter())).result()
    return (times[-1] - times[1]) / 10 / at_once(device)  # the first steps also warm up
