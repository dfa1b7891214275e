"""Every draw is a function of (seed, stream, position), and an epoch visits every sample once."""

import itertools

import pytest
import torch

from train.base.randomness import STREAMS, batch_rows, generator, steps_per_epoch


def first_draw(*position) -> float:
    return float(torch.rand((), generator=generator(*position), dtype=torch.float64))


def test_a_draw_depends_on_its_position_and_on_nothing_else():
    before = first_draw(3, "draws", 7)
    torch.manual_seed(99)
    torch.rand(1000)
    first_draw(3, "draws", 8)
    assert first_draw(3, "draws", 7) == before


def test_no_two_seeds_streams_or_positions_share_their_numbers():
    positions = list(itertools.product((0, 1, 2**31, 2**40), STREAMS, (0, 1, 2, 10**6)))
    assert len({first_draw(*position) for position in positions}) == len(positions)
    pairs = list(itertools.product(range(20), range(20)))  # as images have: user and number
    assert len({first_draw(0, "images", *pair) for pair in pairs}) == len(pairs)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first_draw(1, "weights", 0)
    batch_rows(1, 2, samples=10, batch=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("samples", "batch", "steps"), [(10, 3, 4), (9, 3, 3), (2, 8, 1), (1, 1, 1)])
def test_an_epoch_visits_every_sample_once_in_batches(samples, batch, steps):
    assert steps_per_epoch(samples, batch) == steps
    for epoch in range(3):
        rows = [batch_rows(0, epoch * steps + i, samples, batch) for i in range(steps)]
        assert [len(r) for r in rows[:-1]] == [batch] * (steps - 1)
        assert sorted(torch.cat(rows).tolist()) == list(range(samples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(batch_rows(seed, epoch, 50, 50).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6


def test_the_order_of_samples_does_not_depend_on_the_batch_size():
    def order(batch):
        return torch.cat([batch_rows(5, step, 24, batch) for step in range(24 // batch)]).tolist()

    assert order(1) == order(4) == order(8) == order(24)
