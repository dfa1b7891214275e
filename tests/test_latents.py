"""Latents are scaled by the whole split, and a cache of them is never another model's or another data set's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nets.vae import DiagonalGaussian, VAEConfig
from tests.tiny import tiny, tiny_images, tiny_vae
from train.data import latents as module
from train.data.latents import (
    LatentsConfig,
    LatentSource,
    cached_moments,
    encode_moments,
    measure_scaling,
    save_statistics,
)

CPU = torch.device("cpu")
CACHED, IN_LOOP = LatentsConfig(cache_latents=True), LatentsConfig(cache_latents=False)
NO_FLIPS = torch.zeros(2, 5, dtype=torch.bool)


@pytest.fixture
def vae():
    return tiny_vae(tiny())


def cache(vae, data, folder) -> str:
    """The name of the file that the moments come from."""
    before = set(folder.glob("*"))
    cached_moments(vae, data, folder, CPU)
    names = {path.name for path in set(folder.glob("*")) - before}
    return names.pop() if names else ""


# ---- the scale


class Known(nn.Module):
    """An encoder of one latent value an image: its mean is the image's red value, its deviation half the green."""

    config = VAEConfig((32,), latent_channels=1)

    def encode(self, x):
        red, green = ((x[:, i, :1, :1] + 1) * 127.5 for i in (0, 1))
        return DiagonalGaussian(torch.stack([red + 10_000, 2 * torch.log(green / 2)], dim=1).flatten(1, 2))


def known_data(count: int):
    data = tiny_images(count, side=8)
    data.images[:, 1] = data.images[:, 1].clamp(min=1)
    red, green = (data.images[:, i, 0, 0].double() for i in (0, 1))
    return data, red + 10_000, green / 2


def test_the_scale_equals_its_closed_form_over_every_image_in_float64():
    """The variance of sampled latents is that of their means and the mean of their variances."""
    data, mean, std = known_data(70)  # several batches, the last one short
    found = measure_scaling(Known(), data, torch.arange(70), CPU)
    expected = (mean.var(correction=0) + std.square().mean()).sqrt()
    assert found["scaling_factor"] == pytest.approx(float(1 / expected), rel=1e-5)  # far off in float32 sums
    assert found["std"] == pytest.approx(float(expected), rel=1e-5)
    assert found["mean"] == pytest.approx(float(mean.mean()), rel=1e-7)
    assert (found["images"], found["values"]) == (70, 70)


def test_the_scale_is_of_the_rows_asked_for_and_of_all_of_them():
    data, mean, std = known_data(40)
    data.images[:16, 0] = 7  # a first batch unlike the rest
    rows = torch.arange(0, 40, 2)
    mean, std = data.images[rows, 0, 0, 0].double(), std[rows]
    found = measure_scaling(Known(), data, rows, CPU)
    expected = (mean.var(correction=0) + std.square().mean()).sqrt()
    assert found["std"] == pytest.approx(float(expected), rel=1e-5)
    first = measure_scaling(Known(), data, rows[:8], CPU)
    assert abs(first["std"] - found["std"]) > 0.1 * found["std"]


def test_scaled_latents_of_a_real_encoder_have_unit_variance(vae):
    data = tiny_images(64)
    statistics = measure_scaling(vae, data, torch.arange(64), CPU)
    vae.config = replace(vae.config, scaling_factor=statistics["scaling_factor"])
    source = LatentSource(vae, data, IN_LOOP, None, CPU)
    noise = torch.randn(64, *source.shape)
    latents = source.latents(torch.arange(64), torch.zeros(2, 64, dtype=torch.bool), noise)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.02)
    assert statistics["values"] == latents.numel()


def test_statistics_are_written_to_be_read(tmp_path):
    save_statistics({"scaling_factor": 0.5, "images": 3}, tmp_path)
    assert json.loads((tmp_path / "latent_statistics.json").read_text()) == {"scaling_factor": 0.5, "images": 3}


# ---- the cache


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_latents_from_the_cache_are_those_encoded_in_the_loop(tmp_path, vae, precision):
    """Also inside of the autocast of a training step."""
    data = tiny_images(20)
    sources = [LatentSource(vae, data, config, tmp_path, CPU) for config in (CACHED, IN_LOOP)]
    rows, noise = torch.tensor([19, 3, 3, 0, 17]), torch.randn(5, *sources[0].shape)
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        cached, encoded = (source.latents(rows, NO_FLIPS, noise) for source in sources)
    assert cached.dtype == encoded.dtype == torch.float32
    torch.testing.assert_close(cached, encoded, rtol=1e-5, atol=1e-6)


def test_the_cache_is_written_batch_by_batch_and_not_mapped_before_the_disk_has_room_for_it(
    tmp_path, vae, monkeypatch
):
    """A page of a mapped file that the disk is too full for would kill the process with SIGBUS."""
    data, sizes = tiny_images(40), []

    def watched(*args):
        for moments in encode_moments(*args):
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield moments

    monkeypatch.setattr("train.latents.encode_moments", watched)
    moments = LatentSource(vae, data, CACHED, tmp_path, CPU).moments
    assert max(sizes) < moments.nbytes
    expected = torch.cat(list(encode_moments(vae, data, torch.arange(40), CPU)))
    assert torch.equal(moments, expected)


def test_latents_are_the_encoders_mean_and_deviation_times_the_scale(vae):
    data = tiny_images(5)
    noise = torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        gaussian = vae.encode(data.batch(torch.arange(5)))
    expected = 0.8 * (gaussian.mean + gaussian.std * noise)
    found = LatentSource(vae, data, IN_LOOP, None, CPU).latents(torch.arange(5), NO_FLIPS, noise)
    torch.testing.assert_close(found, expected)


def test_a_flipped_image_has_the_latents_of_the_flipped_pixels(vae):
    data = tiny_images(5)
    source, noise = LatentSource(vae, data, IN_LOOP, None, CPU), torch.zeros(5, 4, 8, 8)
    flips = NO_FLIPS.clone()
    flips[0, 1] = flips[1, 2] = True
    flipped = replace(data, images=data.images.clone())
    flipped.images[1] = flipped.images[1].flip(2)
    flipped.images[2] = flipped.images[2].flip(1)
    expected = LatentSource(vae, flipped, IN_LOOP, None, CPU).latents(torch.arange(5), NO_FLIPS, noise)
    assert torch.equal(source.latents(torch.arange(5), flips, noise), expected)


def test_the_vae_looks_at_each_image_once(tmp_path, vae, monkeypatch):
    data = tiny_images(20)
    first = cached_moments(vae, data, tmp_path, CPU)
    assert first.shape == (20, 2, 4, 8, 8)
    monkeypatch.setattr(vae, "encode", None)
    assert torch.equal(cached_moments(vae, data, tmp_path, CPU), first)


def test_other_weights_other_settings_or_other_images_have_a_file_of_their_own(tmp_path, vae):
    data = tiny_images(6)
    names = [cache(vae, data, tmp_path)]

    def changed(key, index):
        pixels = data.images.clone()
        pixels[index] ^= 1
        return replace(data, **{key: pixels})

    names.append(cache(vae, changed("images", (5, 2, 15, 15)), tmp_path))  # the last bit of the last pixel
    names.append(cache(vae, replace(data, images=data.images.flip(0)), tmp_path))
    names.append(cache(vae, tiny_images(5), tmp_path))
    names.append(cache(vae, tiny_images(6, side=8), tmp_path))
    other = tiny_vae(tiny("vae.norm_groups=2"))  # the same weights, used otherwise
    other.load_state_dict(vae.state_dict())
    names.append(cache(other, data, tmp_path))
    with torch.no_grad():
        vae.quant_conv.bias[-1] = torch.nextafter(vae.quant_conv.bias[-1], torch.tensor(1e9))
    names.append(cache(vae, data, tmp_path))
    assert len(set(names)) == 7
    assert "" not in names


def test_what_the_moments_do_not_depend_on_asks_for_no_new_file(tmp_path, vae):
    data = tiny_images(6)
    assert cache(vae, data, tmp_path)
    vae.config = replace(vae.config, scaling_factor=0.3, sample_size=64)
    assert cache(vae, replace(data, user_names=["A", "B", "C"]), tmp_path) == ""


def test_encoding_that_is_interrupted_leaves_no_cache(tmp_path, vae, monkeypatch):
    data = tiny_images(40)

    def interrupted(*args):
        yield from list(encode(*args))[:2]
        raise KeyboardInterrupt

    encode = module.encode_moments
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_moments", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_moments(vae, data, tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []
    assert (cached_moments(vae, data, tmp_path, CPU)[-1, 1] > 0).all()


def test_what_is_done_to_the_cached_tensor_does_not_reach_the_file(tmp_path, vae):
    data = tiny_images(6)
    moments = cached_moments(vae, data, tmp_path, CPU)
    before = moments.clone()
    moments.zero_()
    assert torch.equal(cached_moments(vae, data, tmp_path, CPU), before)
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.load(path), before.numpy())
