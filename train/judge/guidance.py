"""Which sampling serves a classifier?

Mixing: the large structures of an image are made as another user's, and its details as the user's own. A classifier
then sees how others walk, speak or write in the hand of this one, which few recordings do not show.

Guidance: images generated with each of a few are what judges learn from, who are then asked about the real training images. What
is held out has no say.

It makes the right person surer and the images of a person more alike. A classifier learns from both, so the best
guidance for it is often less than for the eye, and depends on model and data.

N real images, U users.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from train.base.files import read_json, write_json
from train.base.processes import on_main
from train.base.progress import progress
from train.base.units import percent
from train.config.schema import Config
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
from train.stages.generate import generate

CANDIDATES = (1.0, 1.5, 2.0, 3.0)
MOST_OF_EACH, MOST = 10, 200  # images that are generated with a candidate, of each user and of all
MOST_ASKED = 2000  # real images
SEEDS = 2
NAME = "guidance.json"  # beside the model
MIX_ABOVE = 3.0  # sigma/alpha; docs/ablations.md has what other values are worth


@dataclass(frozen=True, eq=False)
class Tried:
    guidance: float
    right: Tensor  # (SEEDS, N), 0 to 1: the share of the judges that recognise each real image

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


def try_out(made: dict[float, Labelled], real: Labelled, num_users: int, device: torch.device) -> list[Tried]:
    """Both kinds of judges learn from the images `made` with each guidance, and are asked about the real ones."""
    steps = steps_enough(real, num_users, 0, device)

    def training(images: Labelled, seed: int) -> Training:
        blank = network.new_network(real.images.shape[1], num_users, seed, device)
        return Training(blank, lambda: images, steps, False, seed, lambda trained: trained.recognised(real.images))

    said = iter(train_all([training(images, seed) for images in made.values() for seed in range(SEEDS)], device))
    seen, found = ridge.seen_by_ridge(real.images), []
    for guidance, images in made.items():
        by_ridge = ridge.ridge_of(images, num_users, real).predict(seen) == real.users
        by_network = torch.stack([next(said) == real.users for _ in range(SEEDS)])
        found.append(Tried(guidance, (by_network.double() + by_ridge) / 2))
    return found


def best(tried: Sequence[Tried], recordings: Tensor) -> Tried:
    """The smallest guidance that is not surely worse than the one of the highest accuracy, as images vary more then.

    `recordings` (N,) numbers those of the real images.
    """
    highest = max(tried, key=lambda one: one.accuracy)
    seeds = of_a_difference([between_seeds(one.right) for one in tried])

    def surely_worse(one: Tried) -> bool:
        return over_recordings(highest.right - one.right, recordings, seeds=seeds, least=-1.0).low > 0

    return min((one for one in tried if not surely_worse(one)), key=lambda one: one.guidance)


# ---- for each model


def for_a_classifier(model: Path, config: Config, trained: TrainedLDM, given: bool, choose: bool = True) -> Config:
    """The config that makes images for a classifier: with the guidance that serves it, unless one is `given`, and mixed.

    The guidance is chosen once and kept beside the model. Where that has not been done it is done now, if `choose`, on
    the models' device; else the config stays as it is.
    """
    sampling = config.sampling
    guidance = sampling.guidance if given else on_main(lambda: _chosen(model, config, trained, choose))
    if guidance is None:
        return config
    mix_above = sampling.mix_above or MIX_ABOVE
    return replace(config, sampling=replace(sampling, guidance=guidance, mix_above=mix_above))


def _chosen(model: Path, config: Config, trained: TrainedLDM, choose: bool) -> float | None:
    key, path = settings_of(config.sampling, SEED, trained), model.parent / NAME
    del key["sampling"]["guidance"]
    kept = read_json(path) if path.is_file() else {}
    if kept.get("of") == key:
        return kept["guidance"]
    return choose_now(model, config, trained, key, path) if choose else None


def choose_now(model: Path, config: Config, trained: TrainedLDM, key: dict, path: Path) -> float:
    data, split = real_images(model, config)
    rows, num_users = evenly(split.training, MOST_ASKED), len(data.user_names)
    real, recordings = labelled(data, rows), numbers_of_recordings(data, rows.tolist(), config.data)
    each = max(1, min(MOST_OF_EACH, MOST // num_users))
    wanted = [(user, number) for number in range(each) for user in range(num_users)]
    made = {guidance: Labelled(images, torch.tensor([user for user, _ in wanted]))
            for guidance, images in generated(trained, config, wanted).items()}  # fmt: skip
    tried = try_out(made, real, num_users, next(trained.vae.parameters()).device)
    chosen = best(tried, recordings)
    write_json(path, {"guidance": chosen.guidance, "tried": {f"{one.guidance:g}": one.accuracy for one in tried},
                      "images_per_user": each, "of": key})  # fmt: skip
    highest = max(tried, key=lambda one: one.accuracy)
    accuracies = ", ".join(f"{percent(one.accuracy)} with {one.guidance:g}" for one in tried)
    said = (f"judges that learn from {each} generated images per user recognise of the real training images "
            f"{accuracies}")  # fmt: skip
    chance = float(real.users.bincount().max()) / len(real)
    if is_blind(over_recordings(highest.right, recordings), chance):
        print(f"guidance {chosen.guidance:g} is taken, the smallest: {said}, which is not above chance "
              f"({percent(chance)}), so that they can tell nothing about guidance ({path})")  # fmt: skip
    else:
        print(f"guidance {chosen.guidance:g} serves a classifier: {said} ({path})")
    return chosen.guidance


def generated(trained: TrainedLDM, config: Config, wanted: list[tuple[int, int]]) -> dict[float, Tensor]:
    """Images uint8 (M, C, H, W) for each of CANDIDATES, all from the same noise."""
    size, found = config.sampling.batch_size, {guidance: [] for guidance in CANDIDATES}
    batches = [(guidance, wanted[start : start + size])
               for guidance in CANDIDATES for start in range(0, len(wanted), size)]  # fmt: skip
    for guidance, batch in progress(batches, desc="choosing the guidance", unit="batch"):
        sampling = replace(config.sampling, guidance=guidance)
        found[guidance].append(
            generate(trained.denoiser, trained.vae, trained.schedule, sampling, batch, SEED, size)
        )
    return {guidance: torch.cat(images) for guidance, images in found.items()}
