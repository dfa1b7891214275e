"""Which sampling serves a classifier? It is tried out, once for a model; what is held out has no say.

Guidance makes the right person surer and the images of a person more alike. A classifier learns from both, so the best
guidance for it is often less than for the eye.

Mixing makes an image's large structures as another user's, and its details as the user's own. Where those structures
are what differs between recordings (when and how fast somebody walks), a classifier gets to see of each user what was
recorded of others only. Where they are what tells users apart, it sees the wrong ones, and mixing must not be used.

Judges learn from images that were generated in each way, and are asked about real training images.

N real images, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from train.base.files import kept_in, write_json
from train.base.processes import on_main
from train.base.progress import progress
from train.base.units import percent
from train.config.schema import Config
from train.config.sections import GenerationConfig
from train.data.dataset import evenly
from train.data.split import numbers_of_recordings
from train.judge import network, ridge
from train.judge.interval import between_seeds, over_recordings
from train.judge.labelled import Labelled
from train.judge.material import labelled, real_images
from train.judge.pool import Training, steps_enough, train_all
from train.judge.sight import is_blind
from train.judge.verdict import of_a_difference
from train.runs.final_model import TrainedLDM
from train.runs.generated import SEED, settings_of
from train.runs.so_far import run_of
from train.stages.generate import batches_of, generate

GUIDANCES = (1.0, 1.5, 2.0, 3.0)
MIXINGS = (3.0, 4.5)  # values of mix_above, the most mixing first; below 2.5 too little of the user is left
KEPT = 0.9  # of the accuracy without mixing, where mixing is used
MOST_OF_EACH, MOST = 10, 200  # images that are generated in one way, of each user and of all
MOST_ASKED = 2000  # real images
SEEDS = 2
NAME = "purpose_augment.json"  # beside the model
CHOSEN = ("guidance", "mix_above")  # keys of the config


@dataclass(frozen=True, eq=False)
class Tried:
    sampling: GenerationConfig
    right: Tensor  # (SEEDS, N), 0 to 1: the share of the judges that recognise each real image

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def __str__(self) -> str:
        mixing = f" mixed above {self.sampling.mix_above:g}" if self.sampling.mix_above else ""
        return f"{percent(self.accuracy)} with {self.sampling.guidance:g}{mixing}"


def try_out(
    made: dict[GenerationConfig, Labelled], real: Labelled, num_users: int, device: torch.device
) -> list[Tried]:
    """Both kinds of judges learn from the images `made` in each way, and are asked about the real ones."""
    steps = steps_enough(real, num_users, 0, device)

    def training(images: Labelled, seed: int) -> Training:
        blank = network.new_network(real.images.shape[1], num_users, seed, device)
        return Training(blank, lambda: images, steps, False, seed, lambda trained: trained.recognised(real.images))

    said = iter(train_all([training(images, seed) for images in made.values() for seed in range(SEEDS)], device))
    seen, found = ridge.seen_by_ridge(real.images), []
    for sampling, images in made.items():
        by_ridge = ridge.ridge_of(images, num_users, real).predict(seen) == real.users
        by_network = torch.stack([next(said) == real.users for _ in range(SEEDS)])
        found.append(Tried(sampling, (by_network.double() + by_ridge) / 2))
    return found


def best(tried: Sequence[Tried], recordings: Tensor) -> Tried:
    """The smallest guidance that is not surely worse than the one of the highest accuracy, as images vary more then.

    `recordings` (N,) numbers those of the real images.
    """
    highest = max(tried, key=lambda one: one.accuracy)
    seeds = of_a_difference([between_seeds(one.right) for one in tried])

    def surely_worse(one: Tried) -> bool:
        return over_recordings(highest.right - one.right, recordings, seeds=seeds, least=-1.0).low > 0

    return min((one for one in tried if not surely_worse(one)), key=lambda one: one.sampling.guidance)


def most_mixed(plain: Tried, mixed: Sequence[Tried]) -> Tried:
    """The first of `mixed` from which judges learn nearly as much of the users as from `plain`, and else that."""
    return next((one for one in mixed if one.accuracy >= KEPT * plain.accuracy), plain)


# ---- once for each model


def for_a_classifier(model: Path, config: Config, trained: TrainedLDM, choose: bool = True) -> Config:
    """The config with the guidance and the mixing that serve a classifier.

    They are chosen once and kept beside the model. Where that has not been done it is done now, if `choose`, on the
    models' device; else the config stays as it is. A mixing that the config names stays, too.
    """
    key, path = settings_of(config.sampling, SEED, trained), run_of(model) / NAME
    del key["sampling"]["guidance"]

    def of_this(kept: dict) -> dict | None:
        if kept.get("of") != key:
            return None
        chosen = {name: kept["chosen"][name] for name in CHOSEN}
        replace(config.sampling, **chosen)  # whose checks they have to pass
        return chosen

    def found() -> dict | None:
        return kept_in(path, of_this) or (choose_now(model, config, trained, key, path) if choose else None)

    chosen = on_main(found)
    return replace(config, sampling=replace(config.sampling, **chosen)) if chosen else config


def choose_now(model: Path, config: Config, trained: TrainedLDM, key: dict, path: Path) -> dict:
    data, split = real_images(model, config)
    rows, num_users = evenly(split.training, MOST_ASKED), len(data.user_names)
    real, recordings = labelled(data, rows), numbers_of_recordings(data, rows.tolist(), config.data)
    each = max(1, min(MOST_OF_EACH, MOST // num_users))
    wanted = [(user, number) for number in range(each) for user in range(num_users)]

    def tried(samplings: list[GenerationConfig], what: str) -> list[Tried]:
        made = generated(trained, samplings, wanted, what)
        return try_out(made, real, num_users, next(trained.vae.parameters()).device)

    guided = tried([replace(config.sampling, guidance=scale) for scale in GUIDANCES], "choosing the guidance")
    plain, mixed = best(guided, recordings), []
    highest, chance = max(guided, key=lambda one: one.accuracy), float(real.users.bincount().max()) / len(real)
    blind = is_blind(over_recordings(highest.right, recordings), chance)
    if config.sampling.mix_above is None and num_users > 1 and not blind:
        mixed = tried([replace(plain.sampling, mix_above=level) for level in MIXINGS], "choosing the mixing")
    chosen = keys_of(most_mixed(plain, mixed))
    figures = [keys_of(one) | {"accuracy": one.accuracy} for one in (*guided, *mixed)]
    write_json(path, {"chosen": chosen, "tried": figures, "images_per_user": each, "of": key})
    mixing = f"mixing above {chosen['mix_above']:g}" if chosen["mix_above"] else "no mixing"
    said = (f"judges that learn from {each} generated images per user recognise of the real training images "
            f"{', '.join(map(str, (*guided, *mixed)))}")  # fmt: skip
    if blind:
        print(f"guidance {chosen['guidance']:g} is taken, the smallest: {said}, which is not above chance "
              f"({percent(chance)}), so that they can tell nothing about guidance ({path})")  # fmt: skip
    else:
        print(f"guidance {chosen['guidance']:g} and {mixing} serve a classifier: {said} ({path})")
    return chosen


def keys_of(one: Tried) -> dict[str, float | None]:
    """What is chosen, by the names in the config."""
    return {name: getattr(one.sampling, name) for name in CHOSEN}


def generated(
    trained: TrainedLDM, samplings: list[GenerationConfig], wanted: list[tuple[int, int]], what: str
) -> dict[GenerationConfig, Labelled]:
    """Images of the (user, number) of `wanted` in each way, all from the same noise."""
    users, size = torch.tensor([user for user, _ in wanted]), samplings[0].batch_size
    found = {sampling: [] for sampling in samplings}
    batches = [(sampling, batch) for sampling in samplings for batch in batches_of(wanted, size)]
    for sampling, batch in progress(batches, desc=what, unit="batch"):
        images = generate(trained.denoiser, trained.vae, trained.schedule, sampling, batch, SEED, size)
        found[sampling].append(images)
    return {sampling: Labelled(torch.cat(images), users) for sampling, images in found.items()}
