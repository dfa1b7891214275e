"""Latents are scaled by the whole split, and a cache of them is never another model's or another data set's."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nets.vae import DiagonalGaussian, VAEConfig
from tests.tiny import tiny, tiny_images, tiny_vae
from train.base.errors import UserError
from train.data import latents as module
from train.data.latents import (
    LatentSource,
    cached_moments,
    encode_moments,
    encoding_batch,
    measure_scaling,
    require_sane_latents,
)

CPU = torch.device("cpu")
NO_FLIPS = torch.zeros(2, 5, dtype=torch.bool)


@pytest.fixture
def vae():
    return tiny_vae(tiny())


def cache(vae, data, folder) -> str:
    """The name of the file that the moments come from."""
    before = set(folder.glob("*"))
    cached_moments(vae, data, torch.arange(len(data)), folder, CPU)
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


def test_the_scale_equals_its_closed_form_over_every_image():
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
    source = LatentSource(vae, data, None, CPU)
    noise = torch.randn(64, *source.shape)
    latents = source.latents(torch.arange(64), torch.zeros(2, 64, dtype=torch.bool), noise)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.02)
    assert statistics["values"] == latents.numel()


@pytest.mark.parametrize(("factor", "sane"), [(1.0, True), (1.5, True), (3.0, False), (0.3, False), (1e5, False)])
def test_latents_of_a_scale_far_from_one_are_refused(factor, sane):
    data, rows = tiny_images(), torch.arange(12)
    true = measure_scaling(tiny_vae(tiny()), data, rows, CPU)["scaling_factor"]
    vae = tiny_vae(tiny(), scaling_factor=factor * true)
    if sane:
        assert require_sane_latents(vae, data, rows, CPU) == pytest.approx(factor, rel=1e-4)
    else:
        with pytest.raises(UserError, match="not about 1: the VAE was trained on other images"):
            require_sane_latents(vae, data, rows, CPU)


# ---- the cache


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_latents_from_the_cache_are_those_encoded_in_the_loop(tmp_path, vae, precision):
    """Also inside of the autocast of a training step."""
    data = tiny_images(20)
    moments = cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)
    sources = [LatentSource(vae, data, source, CPU) for source in (moments, None)]
    rows, noise = torch.tensor([19, 3, 3, 0, 17]), torch.randn(5, *sources[0].shape)
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        cached, encoded = (source.latents(rows, NO_FLIPS, noise) for source in sources)
    assert cached.dtype == encoded.dtype == torch.float32
    # Encoded in batches of other sizes: some 20 layers round values of about 3 by 2^-24 of them, fp16 by 2^-11.
    torch.testing.assert_close(cached, encoded, rtol=0, atol=1e-4)


def test_only_the_rows_asked_for_are_cached_and_found_by_row(tmp_path, vae):
    """What the others look like does not matter, and none of them is taken for one that is cached."""
    data, rows = tiny_images(20), torch.tensor([2, 3, 7, 11, 17])
    moments = cached_moments(vae, data, rows, tmp_path, CPU)
    assert moments.shape[0] == 5
    sources = [LatentSource(vae, data, moments, CPU, rows=rows), LatentSource(vae, data, None, CPU)]
    asked, noise = torch.tensor([11, 2, 17, 7, 2]), torch.randn(5, *sources[0].shape)
    torch.testing.assert_close(*(source.latents(asked, NO_FLIPS, noise) for source in sources), rtol=0, atol=1e-4)
    for other in (0, 4, 16, 18, 19):
        with pytest.raises(IndexError):
            sources[0].latents(torch.tensor([other]), NO_FLIPS[:, :1], noise[:1])
    data.images[torch.tensor([0, 4, 19])] = 255
    assert torch.equal(cached_moments(vae, data, rows, tmp_path, CPU)[:], moments[:])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_grows_batch_by_batch_and_interrupted_goes_on(tmp_path, vae, monkeypatch):
    """Its file is written, not mapped, as it grows: a page that the disk is too full for would kill the process."""
    data, rows, sizes, asked = tiny_images(40), torch.arange(40), [], []
    monkeypatch.setattr(module, "MOST_ENCODED", 16)

    def watched(vae, data, rows, device):
        asked.append(len(rows))
        for number, moments in enumerate(encode_moments(vae, data, rows, device)):
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*/rows.raw")))
            if number == 2 and len(asked) == 1:
                raise KeyboardInterrupt
            yield moments

    expected = torch.cat(list(encode_moments(vae, data, rows, CPU)))
    monkeypatch.setattr(module, "encode_moments", watched)
    with pytest.raises(KeyboardInterrupt):
        cached_moments(vae, data, rows, tmp_path, CPU)
    assert torch.equal(cached_moments(vae, data, rows, tmp_path, CPU)[:], expected)
    assert asked == [40, 8]
    assert sizes == [expected[:count].nbytes for count in (0, 16, 32, 32)]


def test_a_batch_that_memory_is_too_small_for_is_halved(vae, monkeypatch):
    data, sizes, encode = tiny_images(10), [], vae.encode

    def short_of_memory(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("full")
        return encode(x)

    expected = torch.cat(list(encode_moments(vae, data, torch.arange(10), CPU)))
    monkeypatch.setattr(module, "MOST_ENCODED", 8)
    monkeypatch.setattr(vae, "encode", short_of_memory)
    found = torch.cat(list(encode_moments(vae, data, torch.arange(10), CPU)))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    torch.testing.assert_close(found, expected)


def test_the_batch_that_is_encoded_shrinks_as_images_grow(vae):
    vae.config = replace(vae.config, channels=(128, 256, 512))
    assert [encoding_batch(vae, side) for side in (8, 128, 256, 512, 1024, 8192)] == [64, 21, 5, 1, 1, 1]


def test_latents_are_the_scaled_sample_of_the_encoders_gaussian(vae):
    data = tiny_images(5)
    noise = torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        gaussian = vae.encode(data.batch(torch.arange(5)))
    expected = 0.8 * (gaussian.mean + gaussian.std * noise)
    found = LatentSource(vae, data, None, CPU).latents(torch.arange(5), NO_FLIPS, noise)
    torch.testing.assert_close(found, expected)


def test_a_flipped_image_has_the_latents_of_the_flipped_pixels(vae):
    data = tiny_images(5)
    source, noise = LatentSource(vae, data, None, CPU), torch.zeros(5, 4, 8, 8)
    flips = NO_FLIPS.clone()
    flips[0, 1] = flips[1, 2] = True
    flipped = replace(data, images=data.images.clone())
    flipped.images[1] = flipped.images[1].flip(2)
    flipped.images[2] = flipped.images[2].flip(1)
    expected = LatentSource(vae, flipped, None, CPU).latents(torch.arange(5), NO_FLIPS, noise)
    assert torch.equal(source.latents(torch.arange(5), flips, noise), expected)


def test_the_vae_looks_at_each_picture_once(tmp_path, vae, monkeypatch):
    """Among others too, and where it stands in the data set twice."""
    data, looked_at = tiny_images(20), []
    data.images[7] = data.images[3]
    first = cached_moments(vae, data, torch.arange(15), tmp_path, CPU)
    assert first.shape == (15, 2, 4, 8, 8)
    assert torch.equal(first[7], first[3])
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: looked_at.append(len(x)) or encode(x))
    other = replace(data, images=data.images.flip(0))
    assert torch.equal(cached_moments(vae, other, torch.arange(5, 20), tmp_path, CPU)[:], first[:].flip(0))
    assert looked_at == []
    cached_moments(vae, data, torch.arange(20), tmp_path, CPU)
    assert looked_at == [5]


def test_other_weights_or_settings_have_their_own_cache(tmp_path, vae):
    data = tiny_images(6)
    names = [cache(vae, data, tmp_path), cache(vae, tiny_images(6, side=8), tmp_path)]
    other = tiny_vae(tiny("vae.norm_groups=2"))  # the same weights, used otherwise
    other.load_state_dict(vae.state_dict())
    names.append(cache(other, data, tmp_path))
    with torch.no_grad():
        vae.quant_conv.bias[-1] = torch.nextafter(vae.quant_conv.bias[-1], torch.tensor(1e9))
    names.append(cache(vae, data, tmp_path))
    assert len(set(names)) == 4
    assert "" not in names


def test_the_last_bit_of_a_pixel_makes_other_latents(tmp_path, vae):
    data, rows = tiny_images(6), torch.arange(6)
    before = cached_moments(vae, data, rows, tmp_path, CPU)[:]
    data.images[5, 2, 15, 15] ^= 1
    after = cached_moments(vae, data, rows, tmp_path, CPU)[:]
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5], after[5])


def test_what_the_moments_do_not_depend_on_asks_for_no_new_cache(tmp_path, vae):
    data = tiny_images(6)
    assert cache(vae, data, tmp_path)
    vae.config = replace(vae.config, scaling_factor=0.3, sample_size=64)
    assert cache(vae, replace(data, user_names=["A", "B", "C"]), tmp_path) == ""


def test_latents_that_a_disk_has_altered_are_encoded_again(tmp_path, vae, capsys):
    data, rows = tiny_images(6), torch.arange(6)
    expected = cached_moments(vae, data, rows, tmp_path, CPU)[:]
    (path,) = tmp_path.glob("*/rows.raw")
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    torch.testing.assert_close(cached_moments(vae, data, rows, tmp_path, CPU)[:], expected)
    assert capsys.readouterr().err.count("is damaged; rows of it are made anew") == 1
    torch.testing.assert_close(cached_moments(vae, data, rows, tmp_path, CPU)[:], expected)
    assert capsys.readouterr().err == ""


def test_a_vae_of_constant_latents_is_refused():
    """Their deviation is 0, or by rounding the root of a negative number."""
    config, data = tiny(), tiny_images()
    for mean in (0.0, 0.1, 1e3):
        vae = tiny_vae(config)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.zero_()
            vae.quant_conv.bias.copy_(torch.tensor([mean] * 4 + [-30.0] * 4))
        with pytest.raises(UserError, match="turns all images into the same latents"):
            measure_scaling(vae, data, torch.arange(len(data)), torch.device("cpu"))
