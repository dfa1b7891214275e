"""The account of a run's memory, without a GPU and without data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from typing import Literal

import torch
from PIL import Image

from nets.blocks import LARGEST
from train.base.errors import BadArgument, UserError, require
from train.config.schema import Config
from train.memory import report
from train.memory.account import Account
from train.memory.charts import charts
from train.memory.components import Component, components
from train.memory.fit import account_of, on_gpu
from train.memory.gpus import GPU, gpu_named
from train.memory.scenario import Scenario, without_compiler

MOST_RANKS = 1024  # more is a typing error, and each rank would draw noise for the images of all
USERS = 31  # where neither the config nor anybody else says how many


def memcheck(
    config: Config | str | PathLike[str], changes: Mapping[str, object] | None = None, *,
    stage: Literal["vae", "ldm", "sample"] = "ldm", users: int = USERS, gpu: str | None = None, ranks: int = 1,
) -> "MemoryAccount":  # fmt: skip
    """What a step of a config, or the one in a file, with `changes`, will take, and where it fits.

    `users` counts where the config does not say how many there are. `gpu` looks at one card, and traces its largest
    batches themselves; None: at all that are known. `ranks` are the cards of a torchrun, which divide each step.
    UserError, or its BadArgument, where no account can be made of them.
    """
    scenario = scenario_of(Config.of(config, changes), stage, users, ranks)
    return MemoryAccount(scenario, None if gpu is None else gpu_named(gpu))


def scenario_of(config: Config, stage: str, users: int, ranks: int) -> Scenario:
    """The run of one of the `ranks`. BadArgument for numbers out of range."""
    require(stage in ("vae", "ldm", "sample"), f"stage {stage}: must be vae, ldm or sample", BadArgument)
    scenario = without_compiler(Scenario(config, stage, config.user_encoder.num_users or users))
    for what, count, most, error in (
        ("users", scenario.users, LARGEST, BadArgument), ("ranks", ranks, MOST_RANKS, BadArgument),
        ("batch_size x gradient_accumulation_steps =", scenario.images_per_step, LARGEST, UserError),
    ):  # fmt: skip
        require(1 <= count <= most, f"{what} {count}: must be at least 1 and at most {most}", error)
    require(scenario.trains or ranks == 1, "ranks is of the trainings: images are sampled on one card", BadArgument)
    return scenario.of_one_process(ranks, scenario.micro_batch) if scenario.trains else scenario


class MemoryAccount:
    """Counts are exact; everything about a GPU is a prediction. In a notebook it shows itself as its report."""

    def __init__(self, scenario: Scenario, gpu: GPU | None):
        self.gpu, self.scenario = gpu, on_gpu(scenario, gpu)
        with one_thread():
            self.components: list[Component] = components(self.scenario)
            self.account: Account = account_of(self.scenario)

    @cached_property
    def results(self) -> report.Results:
        with one_thread():
            return report.compute_results(self.scenario, self.gpu)

    @property
    def all(self) -> tuple:
        return self.scenario, self.components, self.account, self.gpu, self.results

    @cached_property
    def data(self) -> dict:
        """All of its tables, in bytes: what `--json` prints."""
        return report.as_dictionary(*self.all)

    @property
    def largest_batch(self) -> dict[str, int]:
        """The largest micro-batch that fits, by the card's name; 0 where none does, or the precision is not there."""
        return {row["card"]: row.get(report.variant_of(self.scenario), 0) for row in report.on_gpus(self.results)}

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """memory_timeline, memory_components and memory_modules."""
        return charts(self.account)

    def __str__(self) -> str:
        return report.document(*self.all)

    _repr_markdown_ = __str__


@contextmanager
def one_thread() -> Iterator[None]:
    """While entered, torch has one: no operation here is large enough for threads, and on_all_cores forks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
