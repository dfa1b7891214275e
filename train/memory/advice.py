"""Changes that save memory, what each costs, and the cheapest set of them that makes a run fit."""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from train.memory.fit import account_of, fits, on_gpu, runs
from train.memory.gpus import GPU
from train.memory.scenario import Scenario


class Lever(NamedTuple):
    """A change to the run that saves memory, and what it costs."""

    name: str
    cost: str
    pull: Callable[[Scenario], Scenario]


def levers(scenario: Scenario) -> list[Lever]:
    """The changes that this run has not made yet, the cheapest first."""
    training, config, is_ldm = scenario.training, scenario.config, scenario.stage == "ldm"
    if not scenario.trains:
        return [Lever("batch_size 1", "slower", lambda s: s.accumulated(1))] if scenario.micro_batch > 1 else []
    flips = config.data.horizontal_flip or config.data.vertical_flip
    cost_of_fp16 = "nothing; faster than fp32" if training.mixed_precision == "no" else "some steps, which overflow"
    table = (
        (is_ldm and not config.latents.cache_latents and not flips,
         "cache_latents", "nothing; faster", lambda s: s.with_latents(True)),
        (not training.optimizer.fused, "optimizer.fused", "nothing", lambda s: s.with_fused(True)),
        (not training.lean_activations,
         "lean_activations", "2 to 10% of a step's time", lambda s: s.with_training(lean_activations=True)),
        (training.mixed_precision != "fp16",
         "mixed_precision fp16", cost_of_fp16, lambda s: s.with_training(mixed_precision="fp16")),
        (training.batch_size > 1, *_accumulated(1)),
        (not training.gradient_checkpointing,
         "gradient_checkpointing", "a second forward pass", lambda s: s.with_training(gradient_checkpointing=True)),
        (not training.ema_on_cpu, "ema_on_cpu", "a copy of the weights over the bus in each step",
         lambda s: s.with_training(ema_on_cpu=True)),
        (scenario.processes == 1, "shard_optimizer on 2 cards", "a second card",
         lambda s: s.with_training(shard_optimizer=True).of_one_process(2, s.micro_batch)),
        (scenario.processes > 1 and not training.shard_optimizer,
         "shard_optimizer", "an exchange of weights in each step", lambda s: s.with_training(shard_optimizer=True)),
        (is_ldm and config.user_encoder.tokens_per_user > 1, "tokens_per_user 1",
         "a new model, with one token for each user", lambda s: s.changed(user_encoder={"tokens_per_user": 1})),
    )  # fmt: skip
    return [Lever(*lever) for saves, *lever in table if saves]


def _accumulated(size: int) -> Lever:
    """Split the same batch into micro-batches of this size, which must divide it."""
    return Lever(f"batch_size {size}, accumulated", "slower; same gradient", lambda s: s.accumulated(size))


def cheapest_that_fits(scenario: Scenario, gpu: GPU) -> list[str] | None:
    """Names of the levers that make the run fit, the cheapest first; None if all of them are not enough.

    Levers are pulled in the order of their cost until the run fits; then those it also fits without are dropped, and
    of micro-batches the largest that fits is taken.
    """

    def fits_with(pulled: list[Lever]) -> bool:
        run = scenario
        for lever in pulled:
            run = lever.pull(run)
        return runs(run, gpu) and fits(account_of(on_gpu(run, gpu)), gpu)

    found, training = levers(scenario), scenario.training
    pulled = next((found[:count] for count in range(len(found) + 1) if fits_with(found[:count])), None)
    if pulled is None:
        return None
    for lever in reversed(pulled[:-1]):
        fewer = [other for other in pulled if other is not lever]
        if fits_with(fewer):
            pulled = fewer
    names, smallest = [lever.name for lever in pulled], _accumulated(1).name
    if smallest in names:
        place = names.index(smallest)
        sizes = [size for size in range(training.batch_size - 1, 0, -1) if training.images_per_step % size == 0]
        sets = [[*pulled[:place], _accumulated(size), *pulled[place + 1 :]] for size in sizes]
        names[place] = sets[bisect_left(sets[:-1], True, key=fits_with)][place].name
    return names
