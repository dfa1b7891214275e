"""Run the arms: every judge, every arm, every seed. A trial's outcome is whom the judge recognised in each test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from train.base.progress import progress
from train.base.randomness import generator
from train.judge import network, ridge
from train.judge.arms import REAL, Arm, training_set
from train.judge.augment import augmented
from train.judge.labelled import Labelled
from train.judge.material import Material
from train.judge.network import Network
from train.judge.pool import Training, one_thread_each, train_all

Answers = dict[str, Tensor]  # by test set, the users (N,) that a judge recognises


@dataclass(frozen=True, eq=False)
class Trials:
    """Of one judge: the users that it recognised, by arm and test set, (S, N) each."""

    recognised: dict[Arm, Answers]
    networks: list[Network]
    """Those of the arm `real`, one for each seed."""

    def correct(self, arm: Arm, tests: str, users: Tensor) -> Tensor:
        """(S, N) bool: where the arm's judges recognised the right one of `users` (N,)."""
        return self.recognised[arm][tests] == users


def images_asked_about(material: Material, arm: Arm) -> dict[str, Tensor]:
    """Images, uint8 (N, C, H, W), by test set; judges of real images are asked about images that are not real, too."""
    tests = {name: test.images.images for name, test in material.tests.items()}
    if arm != REAL:
        return tests
    made, decoded = material.generated.images, material.held_out_reconstructed.images
    return {**tests, "generated": made, "reconstructed": decoded}


def run_network(
    arms: Sequence[Arm], seeds: Sequence[int], material: Material, steps: int, device: torch.device
) -> Trials:
    """A trial takes `steps` times the length of its arm."""
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    channels = material.training.images.shape[1]

    def training(arm: Arm, seed: int) -> Training:
        def ask(judge: Network) -> tuple[Network, Answers]:
            asked = images_asked_about(material, arm)
            return judge, {name: judge.recognised(images) for name, images in asked.items()}

        judge = network.new_network(channels, material.num_users, seed, device)
        images = partial(training_set, arm, material, seed)
        return Training(judge, images, round(steps * arm.length), arm.augmented, seed, ask)

    found = dict(zip(jobs, train_all([training(*job) for job in jobs], device), strict=True))
    answers = {job: answer for job, (_, answer) in found.items()}
    return Trials(_by_arm(arms, seeds, answers), [found[REAL, seed][0] for seed in seeds])


def run_ridge(arms: Sequence[Arm], seeds: Sequence[int], material: Material) -> Trials:
    """Of the judge in closed form, for which there are no steps: arms that differ in those only are left out.

    Plain augmentation is one augmented copy of each image.
    """
    arms = [arm for arm in arms if arm.length == 1]
    jobs = [(arm, seed) for arm in arms for seed in seeds]
    seen = {name: ridge.seen_by_ridge(images) for name, images in images_asked_about(material, REAL).items()}

    def trial(job: tuple[Arm, int]) -> Answers:
        arm, seed = job
        training = training_set(arm, material, seed)
        if arm.augmented:
            changed = augmented(training.images, generator(seed, "judge", 1))
            training = training.with_more(Labelled(changed, training.users))
        fitted = ridge.ridge_of(training, material.num_users, material.training)
        return {name: fitted.predict(seen[name]) for name in images_asked_about(material, arm)}

    with one_thread_each(torch.device("cpu")) as pool:
        answers = list(progress(pool.map(trial, jobs), total=len(jobs), desc="ridge", unit="fit"))
    return Trials(_by_arm(arms, seeds, dict(zip(jobs, answers, strict=True))), [])


def _by_arm(arms: Sequence[Arm], seeds: Sequence[int], answers: dict[tuple[Arm, int], Answers]) -> dict[Arm, Answers]:
    return {
        arm: {name: torch.stack([answers[arm, seed][name] for seed in seeds]) for name in answers[arm, seeds[0]]}
        for arm in arms
    }
