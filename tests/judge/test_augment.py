"""Laws of plain augmentation."""

import pytest
import torch
from torch import Tensor

from train.data.images import to_float, to_uint8
from train.judge import augment as module
from train.judge.augment import augment, augmented

B, C, H, W = 40, 3, 24, 32


def pictures(seed: int = 0) -> Tensor:
    return 2 * torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(seed)) - 1


def changed(x: Tensor, seed: int = 0) -> Tensor:
    return augment(x, torch.Generator().manual_seed(seed))


def only(monkeypatch, *kept: str) -> None:
    """Switch the other changes off; the time shift always stays."""
    for name in {"GAIN", "OFFSET", "NOISE", "MASK"} - set(kept):
        monkeypatch.setattr(module, name, 0.0)


def test_augmentation_is_a_function_of_the_generator():
    x = pictures()
    before = x.clone()
    assert torch.equal(changed(x), changed(x))
    assert not torch.equal(changed(x), changed(x, seed=1))
    assert torch.equal(x, before)
    assert changed(x).shape == x.shape
    assert changed(x).dtype == x.dtype
    assert len(module.NAMES) == 5


def test_a_time_shift_goes_round_and_begins_anywhere(monkeypatch):
    only(monkeypatch)
    x = pictures()
    starts = [next(s for s in range(W) if torch.equal(after, before.roll(-s, 2))) for before, after in
              zip(x, changed(x), strict=True)]  # fmt: skip
    assert len(set(starts)) > W // 3
    assert min(starts) < W // 4 < 3 * W // 4 < max(starts)


def test_gain_and_offset_are_those_of_the_whole_image(monkeypatch):
    only(monkeypatch, "GAIN", "OFFSET")
    x = pictures()
    after = changed(x)
    gain = after.flatten(1).std(1) / x.flatten(1).std(1)
    offset = after.flatten(1).mean(1) - gain * x.flatten(1).mean(1)
    assert 0.8 <= gain.min() < 0.85 < 1.15 < gain.max() <= 1.2
    assert -0.1 <= offset.min() < -0.07 < 0.07 < offset.max() <= 0.1
    expected = gain[:, None] * x.flatten(1).sort().values + offset[:, None]
    torch.testing.assert_close(after.flatten(1).sort().values, expected, rtol=0, atol=1e-5)


def test_the_noise_is_white_and_of_its_deviation(monkeypatch):
    only(monkeypatch, "NOISE")
    after = changed(torch.zeros(B, C, H, W))
    assert float(after.std()) == pytest.approx(module.NOISE, rel=0.02)
    assert float((after[..., 1:] * after[..., :-1]).mean()) == pytest.approx(0, abs=0.02 * module.NOISE**2)


def test_a_mask_takes_at_most_a_sixth_of_a_side(monkeypatch):
    """It is one block of whole columns and one of whole rows, at the image's mean."""
    only(monkeypatch, "MASK")
    x = pictures()
    masked = (changed(x) - x.mean((1, 2, 3), keepdim=True)).abs() < 1e-6
    columns, rows = masked.all(2).all(1), masked.all(3).all(1)  # B W, B H
    assert torch.equal(masked, (columns[:, None, :] | rows[:, :, None])[:, None].expand_as(x))
    for hidden, side in ((columns, W), (rows, H)):
        assert hidden.sum(1).max() <= -(-side // 6)
        assert hidden.sum(1).float().mean() == pytest.approx(side / 12, rel=0.3)
        edges = (hidden[:, 1:] != hidden[:, :-1]).sum(1) + hidden[:, 0].int() + hidden[:, -1].int()
        assert edges.max() <= 2
        assert hidden.any(0).float().mean() > 0.8  # in some image; those at the border are masked seldom


def test_many_images_are_augmented_in_batches_one_after_another(monkeypatch):
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "AT_ONCE", 5 * 36)
    one, again = (torch.Generator().manual_seed(1) for _ in range(2))
    parts = [to_uint8(augment(to_float(part), one)) for part in (images[:5], images[5:])]
    assert torch.equal(augmented(images, again), torch.cat(parts))


def test_few_images_are_augmented_at_once():
    images = to_uint8(pictures())
    one, again = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(augmented(images, again), to_uint8(augment(to_float(images), one)))
