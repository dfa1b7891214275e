"""Latents are scaled by the whole split, and a cache of them is never another model's or another data set's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nets.vae import DiagonalGaussian, VAEConfig
from tests.tiny import tiny, tiny_images, tiny_vae
from train.base.errors import UserError
from train.data import latents as module
from train.data.latents import LatentSource, cached_moments, encode_moments, measure_scaling, require_sane_latents

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


@pytest.mark.parametrize(("factor", "sane"), [(1.0, True), (1.5, True), (3.0, False), (0.3, False), (1e9, False)])
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
    assert torch.equal(cached_moments(vae, data, rows, tmp_path, CPU), moments)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_file_grows_batch_by_batch_as_it_is_written(tmp_path, vae, monkeypatch):
    """A page of a mapped file that the disk is too full for would kill the process with SIGBUS."""
    data, sizes = tiny_images(40), []

    def watched(*args):
        for moments in encode_moments(*args):
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield moments

    monkeypatch.setattr(module, "encode_moments", watched)
    moments = cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)
    assert max(sizes) < moments.nbytes
    expected = torch.cat(list(encode_moments(vae, data, torch.arange(40), CPU)))
    assert torch.equal(moments, expected)


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


def test_the_vae_looks_at_each_image_once(tmp_path, vae, monkeypatch):
    data = tiny_images(20)
    first = cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)
    assert first.shape == (20, 2, 4, 8, 8)
    monkeypatch.setattr(vae, "encode", None)
    assert torch.equal(cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU), first)


def test_other_weights_settings_or_images_have_their_own_cache(tmp_path, vae):
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
            cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []
    assert (cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)[-1, 1] > 0).all()


def spoilt(content: bytes) -> dict[str, bytes]:
    """A cache that a crash, a full disk or an earlier version left, or that a disk has altered."""
    middle = len(content) // 2
    return {
        "empty": b"", "cut": content[:middle], "without its checksum": content[:-32], "longer": content + b"\0",
        "a header only": content[:128], "zeros": bytes(len(content)), "no array": b"\x93NUMPY" + bytes(99),
        "another value": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "another shape": content.replace(b"(6, 2, 4, 8, 8)", b"(6, 2, 8, 4, 8)"),
        "another checksum": content[:-1] + bytes([content[-1] ^ 1]),
    }  # fmt: skip


def test_a_spoilt_cache_is_made_anew_and_that_is_said(tmp_path, vae, capsys):
    """The same file as before; one that is whole is not written again."""
    data, rows = tiny_images(6), torch.arange(6)
    moments = cached_moments(vae, data, rows, tmp_path, CPU).clone()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for what, bad in spoilt(content).items():
        path.write_bytes(bad)
        assert bad != content, what
        assert torch.equal(cached_moments(vae, data, rows, tmp_path, CPU), moments), what
        assert path.read_bytes() == content
        assert f"{path}: is damaged; the images are encoded again" in capsys.readouterr().err
    written = path.stat().st_mtime_ns
    cached_moments(vae, data, rows, tmp_path, CPU)
    assert (path.stat().st_mtime_ns, capsys.readouterr().err) == (written, "")


def test_the_cache_of_other_images_is_not_taken_by_its_name(tmp_path, vae):
    data, others, rows = tiny_images(6), tiny_images(6, seed=1), torch.arange(6)
    for images, folder in ((data, "a"), (others, "b")):
        cached_moments(vae, images, rows, tmp_path / folder, CPU)
    (path,), (other,) = ((tmp_path / folder).iterdir() for folder in "ab")
    path.write_bytes(other.read_bytes())
    expected = torch.cat(list(encode_moments(vae, data, rows, CPU)))
    assert torch.equal(cached_moments(vae, data, rows, tmp_path / "a", CPU), expected)


def test_changing_the_cached_tensor_does_not_change_its_file(tmp_path, vae):
    data = tiny_images(6)
    moments = cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU)
    before = moments.clone()
    moments.zero_()
    assert torch.equal(cached_moments(vae, data, torch.arange(len(data)), tmp_path, CPU), before)
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.load(path), before.numpy())


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
