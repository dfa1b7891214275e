"""Laws of the trials: each is its arm's and its seed's, whatever else runs beside it."""

import pytest
import torch

from tests.judge.made_up import material
from train.judge import network, pool
from train.judge.arms import GENERATED, REAL, RECONSTRUCTED, Arm, plan, training_set
from train.judge.labelled import Labelled
from train.judge.material import Material
from train.judge.material import TestSet as Unseen
from train.judge.pool import one_thread_each, seconds_per_step
from train.judge.trials import images_asked_about, run_network, run_ridge

CPU, STEPS, SEEDS = torch.device("cpu"), 12, [4, 5]
AUGMENTED = Arm("real + augmentation", "without generated", augmented=True)
LONGER = Arm("real, oversampled", "without generated", length=1.5)
MORE = Arm("real + 1 x generated", "with generated", times=1.0)
ARMS = [REAL, AUGMENTED, LONGER, MORE, GENERATED, RECONSTRUCTED]


def coloured(count: int, seed: int) -> Labelled:
    """Noise on which each of three users has a colour of its own."""
    rng, users = torch.Generator().manual_seed(seed), torch.arange(count) % 3
    images = torch.randint(0, 128, (count, 3, 16, 16), generator=rng)
    images[torch.arange(count), users] += 100
    return Labelled(images.to(torch.uint8), users)


@pytest.fixture(scope="module")
def source() -> Material:
    held_out = coloured(30, seed=1)
    return material(coloured(24, 0), coloured(48, 2), Unseen(held_out, torch.arange(30)))


def test_a_trial_is_its_arms_and_its_seeds_alone(source):
    """Side by side with eleven others, it is what it would be by itself."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = run_network(ARMS, SEEDS, source, STEPS, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert list(found.recognised) == ARMS
    assert len(found.networks) == len(SEEDS)
    for arm in ARMS:
        for place, seed in enumerate(SEEDS):
            judge = network.new_network(3, 3, seed, CPU)
            training, steps = training_set(arm, source, seed), round(STEPS * arm.length)
            network.train_network(judge, training, steps, arm.augmented, seed, lambda: None)
            for name, images in images_asked_about(source, arm).items():
                assert torch.equal(found.recognised[arm][name][place], judge.logits(images).argmax(1)), (arm, name)
            if arm == REAL:
                asked = source.generated.images
                assert torch.equal(found.networks[place].logits(asked), judge.logits(asked))


def test_the_judge_in_closed_form_has_no_steps(source):
    arms = plan({0.5: 0.5, 1: 1, 2: 2}, quick=False)
    found = run_ridge(arms, SEEDS, source)
    assert list(found.recognised) == [arm for arm in arms if arm.length == 1]
    assert found.networks == []
    again = run_ridge(arms, SEEDS, source)
    for arm, said in found.recognised.items():
        assert torch.equal(said["held_out"], again.recognised[arm]["held_out"])
        assert said["held_out"].shape == (2, 30)
    assert torch.equal(*found.recognised[REAL]["held_out"])  # there is no luck where all images are taken


def test_right_answers_are_counted_by_seed_and_image(source):
    found = run_ridge([REAL, AUGMENTED], SEEDS, source)
    users = source.held_out.images.users
    right = found.correct(REAL, "held_out", users)
    assert right.dtype == torch.bool
    assert torch.equal(right, found.recognised[REAL]["held_out"] == users[None])


def test_a_failure_ends_all_trials(source, monkeypatch):
    """The first error is raised, and the trials beside it stop at their next step."""
    steps, real = [], pool.train_network

    def fails(judge, training, count, augmented, seed, look):
        if seed == SEEDS[1]:
            raise ZeroDivisionError("on purpose")

        def counted() -> None:
            steps.append(1)
            look()

        return real(judge, training, 10_000, augmented, seed, counted)

    monkeypatch.setattr(pool, "train_network", fails)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            run_network([REAL], SEEDS, source, STEPS, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(steps) < 9_000


def test_the_pool_has_a_thread_for_each_that_torch_uses():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_thread_each(CPU) as threads_of_one:
            assert set(threads_of_one.map(lambda _: torch.get_num_threads(), range(20))) == {1}
            assert threads_of_one._max_workers == 3
        with one_thread_each(torch.device("cuda")) as single:  # whose kernels wait in one queue
            assert set(single.map(lambda _: torch.get_num_threads(), range(3))) == {3}
            assert single._max_workers == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_steps_time_is_the_mean_without_the_first_ones(source, monkeypatch):
    times = iter([0.0, 100.0, *(100 + 2.0 * n for n in range(1, 11))])
    monkeypatch.setattr(pool.time, "perf_counter", lambda: next(times))
    assert seconds_per_step(source.training, 3, CPU) == pytest.approx(2.0 / torch.get_num_threads())
