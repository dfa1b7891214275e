"""Laws of the judge that learns: a function of seed and images, which stops when there is no more to learn."""

import pytest
import torch
from torch import Tensor

from train.judge import network as module
from train.judge.labelled import Labelled
from train.judge.network import (
    BATCH,
    LEAST_STEPS,
    MOST_STEPS,
    Network,
    batches,
    enough_steps,
    last_of_each,
    new_network,
    train_network,
)
from train.judge.pool import one_thread_each

CPU = torch.device("cpu")


def noise(count: int, side: int = 16, users: int = 2, seed: int = 0) -> Labelled:
    shape = (count, 3, side, side)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return Labelled(images, torch.arange(count) % users)


def two_colours(count: int, seed: int = 0) -> Labelled:
    """Noise, in which one user's images are red and the other's are blue."""
    made = noise(count, seed=seed)
    images = made.images // 2
    images[made.users == 0, 0] += 100
    images[made.users == 1, 2] += 100
    return Labelled(images, made.users)


def trained(training: Labelled, steps: int = 8, seed: int = 0, augmented: bool = True) -> Network:
    judge = new_network(3, 2, seed, CPU)
    return train_network(judge, training, steps, augmented, seed, lambda: None)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


def test_users_that_differ_are_told_apart_on_new_images():
    new = two_colours(40, seed=1)
    assert torch.equal(trained(two_colours(64), 40).logits(new.images).argmax(1), new.users)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_network_is_a_function_of_the_seed(augmented):
    training = two_colours(40)
    first = weights(trained(training, augmented=augmented))
    torch.manual_seed(99)
    assert torch.equal(weights(trained(training, augmented=augmented)), first)
    assert not torch.equal(weights(trained(training, seed=1, augmented=augmented)), first)
    assert not torch.equal(weights(new_network(3, 2, 1, CPU)), weights(new_network(3, 2, 0, CPU)))


def test_networks_trained_side_by_side_equal_those_trained_alone():
    training, threads = two_colours(40), torch.get_num_threads()
    seeds = range(6)
    alone = [weights(trained(training, seed=seed)) for seed in seeds]
    try:
        torch.set_num_threads(3)
        with one_thread_each(CPU) as pool:
            judges = [new_network(3, 2, seed, CPU) for seed in seeds]
            made = list(pool.map(lambda seed: train_network(judges[seed], training, 8, True, seed, lambda: 0), seeds))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(made, alone, strict=True):
        assert torch.equal(weights(one), other)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
def test_batches_are_full_and_draw_every_image_equally_often(count):
    training = Labelled(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1), torch.arange(count))
    drawn = list(batches(training, 20, False, 0, CPU))
    assert len(drawn) == 20
    assert all(len(users) == len(images) == BATCH for images, users in drawn)
    often = torch.cat([users for _, users in drawn]).bincount(minlength=count)
    assert often.max() - often.min() <= 1
    assert often.sum() == 20 * BATCH
    for images, users in drawn:
        torch.testing.assert_close((images.flatten() + 1) * 127.5, users.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 33])
def test_few_images_are_no_error(count):
    model = trained(two_colours(count), 3)
    assert weights(model).isfinite().all()
    assert model.logits(noise(5).images).isfinite().all()


def test_what_a_network_says_does_not_depend_on_the_other_images():
    """Up to rounding, which depends on the size of the batch; and it does not learn from being asked."""
    model, asked = trained(two_colours(40)), noise(300).images
    before = weights(model)
    whole = model.logits(asked)
    torch.testing.assert_close(torch.cat([model.logits(image[None]) for image in asked[::7]]), whole[::7])
    torch.testing.assert_close(model.head(model.features(asked)), whole)
    assert torch.equal(weights(model), before)
    assert not whole.requires_grad


def test_every_step_is_counted():
    seen = []
    train_network(new_network(3, 2, 0, CPU), two_colours(40), 7, False, 0, lambda: seen.append(1))
    assert len(seen) == 7


# ---- the number of steps


def test_the_last_fifth_of_each_user_is_hidden():
    users = torch.tensor([0] * 10 + [1] * 2 + [2] + [0] * 5 + [3] * 7)
    hidden = last_of_each(users, 0.2)
    assert hidden.nonzero().flatten().tolist() == [11, 15, 16, 17, 24]  # 3 of 15, 1 of 2, 0 of 1, 1 of 7
    assert last_of_each(users, 0.99)[0] == 0


def look_at(monkeypatch, losses) -> tuple[int, int]:
    """The number of steps, and how many were tried, where the validation loss goes as `losses(step)` says."""
    steps = []
    monkeypatch.setattr(module, "learn", lambda *_: steps.append(1))
    monkeypatch.setattr(module.F, "cross_entropy", lambda *_: torch.tensor(losses(len(steps))))
    return enough_steps(new_network(3, 2, 0, CPU), two_colours(20), False, 0), len(steps)


def test_the_search_stops_where_validation_stops_improving(monkeypatch):
    falling = look_at(monkeypatch, lambda step: 3 - step / 100)
    assert falling == (MOST_STEPS, MOST_STEPS)
    found, tried = look_at(monkeypatch, lambda step: max(3 - step / 100, 0.5))
    assert found == 250
    assert 375 <= tried <= 400  # a third of them brought nothing
    assert look_at(monkeypatch, lambda step: 1.0) == (LEAST_STEPS, 75)
    assert look_at(monkeypatch, lambda step: 1.0 + step) == (LEAST_STEPS, 75)
    assert look_at(monkeypatch, lambda _: float("nan"))[0] == LEAST_STEPS


def test_an_easy_task_and_a_hopeless_one_take_few_steps():
    easy, hopeless = two_colours(60), noise(60)
    assert enough_steps(new_network(3, 2, 0, CPU), easy, False, 0) <= 200
    assert enough_steps(new_network(3, 2, 0, CPU), hopeless, False, 0) <= 200


def test_one_image_of_each_user_leaves_nothing_to_validate_with():
    assert enough_steps(new_network(3, 2, 0, CPU), two_colours(2), False, 0) == LEAST_STEPS


def test_the_hidden_images_teach_the_search_nothing(monkeypatch):
    training = two_colours(40)
    hidden, seen = last_of_each(training.users, 0.2), []
    real = module.batches
    monkeypatch.setattr(module, "batches", lambda given, *rest: seen.append(given) or real(given, *rest))
    enough_steps(new_network(3, 2, 0, CPU), training, False, 0)
    assert torch.equal(seen[0].images, training.images[~hidden])
