"""Laws of the search for copies: those that are planted are found, and real new recordings are not accused."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.data.walkers import simulate
from train.stages.copies import Copies, Originals, closest_pairs, nearest_two, pixel_distances

PEOPLE, TRAINED, RECORDED = 12, 2, 5


def row_spectra(images: Tensor) -> Tensor:
    """Features that do not depend on when a picture begins: (N, 64 * 33)."""
    return torch.fft.rfft(images.float().mean(1), dim=2).abs().flatten(1)


@cache
def walkers() -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images, users, recordings) of two recordings of each of 12 people, and (images, users) of three others."""
    pictures = [image for *_, image in simulate(range(PEOPLE), 10 * RECORDED, resolution=64, seed=3)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    recordings = torch.arange(PEOPLE * RECORDED).repeat_interleave(10)
    users = recordings // RECORDED
    trained = recordings % RECORDED < TRAINED
    return (images[trained], users[trained], recordings[trained]), (images[~trained], users[~trained])


def accused(images: Tensor, users: Tensor) -> Copies:
    return Originals(*walkers()[0], row_spectra).find_copies(images, users)


def rolled(images: Tensor, y: int, x: int) -> Tensor:
    return images.roll((y, x), (2, 3))


def padded(images: Tensor, y: int, x: int) -> Tensor:
    height, width = images.shape[2:]
    return F.pad(images, (4, 4, 4, 4))[:, :, 4 - y : 4 - y + height, 4 - x : 4 - x + width]


def changed(images: Tensor, gain: float = 1.0, offset: float = 0.0, noise: float = 0.0) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (gain * images.float() + offset + noise * drawn).clamp(0, 255).round().to(torch.uint8)


PLANTED = {
    "exact": lambda x: x,
    "shifted": lambda x: rolled(x, 0, 4),
    "shifted along both axes": lambda x: rolled(x, -3, 2),
    "shifted, black comes in": lambda x: padded(x, 4, -4),
    "noisy": lambda x: changed(x, noise=12),
    "brighter": lambda x: changed(x, gain=1.3, offset=30),
    "darker": lambda x: changed(x, gain=0.7, offset=-20),
    "shifted, brighter and noisy": lambda x: changed(rolled(x, 2, -4), gain=1.2, offset=20, noise=10),
    "black comes in, darker and noisy": lambda x: changed(padded(x, -1, 3), gain=0.8, noise=10),
}


@cache
def planted() -> dict[str, Copies]:
    """What is found of a copy of each training image, by the way of planting it; all in one search."""
    training, users, _ = walkers()[0]
    found = accused(torch.cat([plant(training) for plant in PLANTED.values()]), users.repeat(len(PLANTED)))
    fields = [getattr(found, field.name).chunk(len(PLANTED)) for field in dataclasses.fields(Copies)]
    return dict(zip(PLANTED, map(Copies, *fields), strict=True))


@pytest.mark.parametrize("name", PLANTED)
def test_at_least_99_of_100_planted_copies_are_found(name):
    found = planted()[name]
    assert (found.accused & (found.nearest == torch.arange(len(found.nearest)))).float().mean() >= 0.99


def test_at_most_1_of_100_new_recordings_is_accused():
    found = accused(*walkers()[1])
    assert len(found.rows) == PEOPLE * 10 * (RECORDED - TRAINED)
    assert found.accused.float().mean() <= 0.01
    assert (found.distance < found.threshold).float().mean() <= 0.05


def test_pixels_alone_find_copies_and_accuse_no_new_recordings():
    (training, users, recordings), (new, new_users) = walkers()
    originals = Originals(training, users, recordings)
    assert originals.find_copies(changed(training, noise=12), users).accused.float().mean() >= 0.99
    assert originals.find_copies(new, new_users).accused.float().mean() <= 0.01


def test_a_copy_of_another_user_is_not_accused():
    training, users, _ = walkers()[0]
    assert accused(training[::2], (users[::2] + 1) % PEOPLE).accused.float().mean() <= 0.01


def test_copies_among_new_images_are_the_closest_pairs():
    (training, training_users, _), (new, users) = walkers()
    images, users = new[::9].clone(), users[::9].clone()
    images[[3, 17]], users[[3, 17]] = changed(training[[50, 7]], noise=5), training_users[[50, 7]]
    found = accused(images, users)
    worst = closest_pairs(found, 4)
    assert found.accused.nonzero().flatten().tolist() == [3, 17]
    assert set(worst[:2].tolist()) == {3, 17}
    assert found.nearest[[3, 17]].tolist() == [50, 7]
    assert len(worst) == 4
    assert len(closest_pairs(found, 1000)) == len(images)


def test_one_recording_of_each_user_is_enough():
    """Then the distances within it say what is near."""
    (training, users, recordings), (new, new_users) = walkers()
    one = recordings % RECORDED == 0
    copies = changed(training[one], noise=8)
    asked, askers = torch.cat([copies, new]), torch.cat([users[one], new_users])
    originals = Originals(training[one], users[one], recordings[one], row_spectra)
    found = originals.find_copies(asked, askers).accused.float()
    assert found[: len(copies)].mean() >= 0.99
    assert found[len(copies) :].mean() <= 0.01


def test_images_without_contrast_are_no_copies():
    training, users, recordings = (x[:60] for x in walkers()[0])
    flat = torch.stack([torch.full_like(training[0], level) for level in (0, 128, 255)])
    assert not Originals(training, users, recordings, row_spectra).find_copies(flat, users[:3]).accused.any()
    known = (torch.cat([training, flat]), torch.cat([users, users[:3]]), torch.cat([recordings, recordings[:3]]))
    asked = torch.cat([training[:5], flat]), torch.zeros(8, dtype=torch.int64)
    found = Originals(*known, row_spectra).find_copies(*asked)
    assert found.accused[:5].all()
    assert found.distance.isfinite().all()
    assert found.ratio.isfinite().all()


def test_users_without_training_images_are_left_out():
    training, users, recordings = (x[:40] for x in walkers()[0])
    originals = Originals(training, users, recordings, row_spectra)
    found = originals.find_copies(training[:6], torch.tensor([99, 0, 99, 0, 1, 99]))
    assert found.rows.tolist() == [1, 3, 4]
    assert (users[found.nearest] == torch.tensor([0, 0, 1])).all()
    assert len(originals.find_copies(training[:2], torch.tensor([98, 99])).rows) == 0


def test_nothing_is_accused_where_nothing_says_what_is_near():
    training, users, recordings = (x[::20] for x in walkers()[0])
    found = Originals(training, users, recordings, row_spectra).find_copies(training, users)
    assert not found.accused.any()
    assert (found.ratio == 1).all()


def test_of_many_images_of_a_user_500_are_checked():
    training, users, recordings = (x[:20] for x in walkers()[0])
    originals = Originals(training, users, recordings, row_spectra)
    found = originals.find_copies(training[:1].expand(700, -1, -1, -1), users[:1].expand(700))
    assert (len(found.rows), int(found.rows[0]), int(found.rows[-1])) == (500, 0, 699)


def test_the_second_nearest_is_of_another_recording():
    distances = torch.tensor([[0.1, 0.12, 0.4, 0.3], [0.5, 0.4, 0.2, 0.1]])
    nearest, distance, ratio = nearest_two(distances, torch.tensor([5, 5, 7, 7]))
    assert nearest.tolist() == [0, 3]
    assert distance.tolist() == pytest.approx([0.1, 0.1])
    assert ratio.tolist() == pytest.approx([1 / 3, 1 / 4])
    assert nearest_two(distances, torch.tensor([5, 5, 5, 5]))[2].tolist() == pytest.approx([0.1 / 0.12, 0.5])


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 16, 40), (1, 105, 105), (1, 128, 128)])
def test_pixel_distances_are_0_of_equal_images_only(size):
    images = torch.randint(0, 256, (6, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    distances = pixel_distances(images, images)
    torch.testing.assert_close(distances.diagonal(), torch.zeros(6), rtol=0, atol=2e-3)
    others = distances[~torch.eye(6, dtype=bool)]
    assert 0.3 < others.min() < others.max() < 1.5
