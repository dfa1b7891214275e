"""The whole judgement, by both judges, in all arms, with distances and copies: what `evaluation.json` holds."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from nets.vae import AutoencoderKL
from train.base.files import file_hash, tensors_hash
from train.base.progress import progress
from train.base.units import counted, duration
from train.judge import augment, measures, network, ridge
from train.judge.arms import Arm, plan, times_for
from train.judge.material import Material
from train.judge.pool import one_thread_each, seconds_per_step
from train.judge.results import Judged, result
from train.judge.sifting import times_sifted, with_sifted
from train.judge.trials import run_network, run_ridge
from train.judge.verdict import TITLES

SEEDS, QUICK_SEEDS = 5, 3


def evaluate(
    material: Material, vae: AutoencoderKL, losses: list[float], quick: bool, seed: int, device: torch.device,
    say: Callable[[str], None],
) -> dict:  # fmt: skip
    """All but the names of folders. `losses` are the UNet's validation losses; `say` is told how long it takes."""
    began = time.monotonic()
    if not quick:
        material = with_sifted(material, seeds_of(seed, quick), device, say)
    judged = run_trials(material, quick, seed, device, say)
    seen = judged.trials["network"].networks[0].features
    parts = {
        "sight": lambda: measures.sight(material, judged.trials),
        "right_person": lambda: measures.right_person(material, judged.trials["network"]),
        "reconstructions": lambda: measures.kept_by_vae(material, judged.trials),
        "fidelity": lambda: measures.fidelity_of(material, vae, device),
        "distances": lambda: measures.distances(material, seen, seed),
        "coverage": lambda: measures.coverage(material, seen, seed),
        "variety": lambda: measures.variety_within_users(material),
        "copies": lambda: measures.copies(material, seen),
    }
    found = {name: part() for name, part in progress(list(parts.items()), desc="distances and copies", unit="")}
    return {
        "quick": quick,
        "seed": seed,
        "data": measures.counts(material),
        "judges": [
            {"name": "network", "title": TITLES["network"], "steps": judged.steps, "most_steps": network.MOST_STEPS},
            {"name": "ridge", "title": TITLES["ridge"], "steps": None, "most_steps": None},
        ],
        "results": {
            name: result(judged, name, test, material, found, losses) for name, test in material.tests.items()
        },
        **found,
        "settings": {
            "seeds": judged.seeds,
            "augmentation": augment.NAMES,
            "network": {"widths": network.WIDTHS, "batch": network.BATCH, "learning_rate": network.LEARNING_RATE},
            "ridge": ridge.RIDGE,
            "threads": torch.get_num_threads(),
        },
        "seconds": time.monotonic() - began,
    }


def hash_of_question(material: Material, vae: AutoencoderKL, losses: list[float], quick: bool, seed: int) -> str:
    """Of all that `evaluate` answers to, and of the judge's source: the same where it would only say again the same."""
    sets = [material.training, material.generated, *(test.images for test in material.tests.values())]
    recordings = [material.training_recordings, *(test.recordings for test in material.tests.values())]
    tensors = [tensor for one in sets for tensor in (one.images, one.users)] + recordings
    beside = [material.user_names, material.training_files, material.generated_files, material.mixed,
              vae.config.scaling_factor, losses, quick, seed]  # fmt: skip
    source = [file_hash(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    return tensors_hash([*tensors, *vae.state_dict().values()], [*beside, source])


def run_trials(
    material: Material, quick: bool, seed: int, device: torch.device, say: Callable[[str], None]
) -> Judged:
    """All arms, all seeds, both judges."""
    seeds = seeds_of(seed, quick)
    real, made = (one.users.bincount(minlength=material.num_users) for one in (material.training, material.generated))
    arms = plan(times_for(real, made), quick, times_sifted(material))
    per_step = seconds_per_step(material.training, material.num_users, device)
    say(f"at most {time_for(arms, len(seeds), network.MOST_STEPS, per_step)}; how long exactly is said when it "
        "is known how many steps a network needs")  # fmt: skip
    # Augmented images take longer to learn, and every arm gets as many steps.
    channels = material.training.images.shape[1]
    blank = [network.new_network(channels, material.num_users, seed, device) for _ in range(2)]
    with one_thread_each(device) as pool:
        search = partial(network.enough_steps, training=material.training, seed=seed)
        steps = max(pool.map(lambda one, augmented: search(one, augmented=augmented), blank, (False, True)))
    say(f"{counted(len(arms) * len(seeds), 'training')} of a network, which needs {steps} steps: about "
        f"{time_for(arms, len(seeds), steps, per_step)}")  # fmt: skip
    trials = {
        "network": run_network(arms, seeds, material, steps, device),
        "ridge": run_ridge(arms, seeds, material),
    }
    return Judged(trials, steps, seeds)


def seeds_of(seed: int, quick: bool) -> list[int]:
    """Those of the trials of each arm."""
    return [seed * SEEDS + number for number in range(QUICK_SEEDS if quick else SEEDS)]


def time_for(arms: list[Arm], seeds: int, steps: int, per_step: float) -> str:
    """How long all trainings take."""
    return duration(seeds * steps * sum(arm.length for arm in arms) * per_step)
