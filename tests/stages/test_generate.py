"""An image is a function of seed, user and number, and of nothing else."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion.sampling import SamplingConfig
from diffusion.schedule import ScheduleConfig, make_schedule
from tests.tiny import tiny, tiny_denoiser, tiny_vae
from train.base import folders
from train.base.errors import UserError
from train.base.randomness import generator
from train.data.images import to_uint8
from train.engine.step import NotFinite
from train.runs.final_model import TrainedLDM
from train.stages.generate import another, fill, generate

WANTED = [(user, number) for user in range(3) for number in range(2)]


@pytest.fixture(scope="module")
def models():
    config = tiny("user_encoder.tokens_per_user=2")
    model, vae = tiny_denoiser(config).eval(), tiny_vae(config)
    for module in (model.unet.conv_out, vae.decoder.conv_out):  # a picture of contrasts, unlike untrained ones
        nn.init.normal_(module.weight, std=0.3)
    return model, vae, make_schedule(config.schedule)


def images(models, config=None, wanted=WANTED, seed=0, batch_size=4):
    return generate(*models, config or SamplingConfig(steps=4, guidance=2.0), wanted, seed, batch_size).int()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig("dpm", 4, guidance=2.0),
        SamplingConfig("heun", 3, guidance=1.0),
        SamplingConfig("ddpm", 4, guidance=2.0),
        SamplingConfig("ddim", 4, eta=0.5, guidance=2.0, guidance_interval=(0.1, 5.0)),
    ],
    ids=lambda config: config.sampler,
)
def test_an_image_does_not_depend_on_its_batch_or_place_in_it(models, config):
    """Within one of 255 levels: a batch of another size is summed in another order, which can cross a rounding.

    In one of the same size, place and neighbours do not change a bit.
    """
    whole = images(models, config, batch_size=6)
    assert whole.shape == (6, 3, 16, 16)
    assert whole.float().std() > 20
    for batch_size in (1, 4):
        assert (images(models, config, batch_size=batch_size) - whole).abs().max() <= 1
    turned = WANTED[3:] + WANTED[:3]
    assert torch.equal(images(models, config, turned, batch_size=6), torch.cat([whole[3:], whole[:3]]))
    backwards = images(models, config, wanted=WANTED[::-1]).flip(0)
    assert (backwards - whole).abs().max() <= 1
    one = images(models, config, wanted=[(1, 1)])
    assert (one[0] - whole[3]).abs().max() <= 1


def test_the_same_seed_gives_the_same_bytes(models):
    torch.manual_seed(1)
    first = images(models)
    torch.manual_seed(2)
    assert torch.equal(images(models), first)


def test_users_numbers_and_seeds_all_differ(models):
    wanted = [*WANTED, (0, 2)]
    found = torch.cat([images(models, wanted=wanted, seed=seed) for seed in (0, 1)]).float()
    for i in range(len(found)):
        for j in range(i):
            assert (found[i] - found[j]).abs().mean() > 2


class Stub(nn.Module):
    """A UNet whose estimate of x0 is the mean of its context, everywhere."""

    config = SimpleNamespace(sample_size=8, latent_channels=4)

    def forward(self, x, t, context):
        return context.mean(dim=(1, 2))[:, None, None, None].expand_as(x)


class Recorder(nn.Module):
    """A decoder that keeps the latents that it is given, and shows them."""

    config = SimpleNamespace(scaling_factor=0.5)

    def decode(self, z):
        self.latents = z
        return z[:, :3].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm", "heun", "euler"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_latents_are_guided_then_unscaled_and_never_clipped(sampler, guidance):
    model = tiny_denoiser(tiny()).eval()
    model.unet = Stub()
    nn.init.constant_(model.user_encoder.unconditional, -1.5)
    for user, value in enumerate((4.0, 5.0, 6.0)):
        model.user_encoder.embedding.weight.data[user] = value
    recorder = Recorder()
    schedule = make_schedule(ScheduleConfig(prediction="x0"))
    config = SamplingConfig(sampler, 4, guidance=guidance)
    pixels = generate(model, recorder, schedule, config, [(0, 0), (2, 0)], seed=0, batch_size=2)
    for latents, conditional in zip(recorder.latents, (4.0, 6.0), strict=True):
        guided = -1.5 + guidance * (conditional + 1.5)
        # Four steps of some ten roundings of 2^-24 are 3e-6 of the largest value.
        torch.testing.assert_close(latents, torch.full_like(latents, guided / 0.5), rtol=1e-4, atol=1e-3)
    assert torch.equal(pixels, to_uint8(recorder.decode(recorder.latents)))


def test_large_structures_are_those_of_another_user(models):
    """Wholly mixed, an image is another user's from the same noise; mixed nowhere, it is the user's own."""
    model, vae, schedule = copy.deepcopy(models)
    model.user_encoder.config = replace(model.user_encoder.config, num_users=2)
    swapped = copy.deepcopy(model)
    swapped.user_encoder.embedding.weight.data[:2] = model.user_encoder.embedding.weight.data[:2].flip(0)
    wanted = [(user, number) for user in (0, 1) for number in range(2)]

    def made(one, mix_above):
        return images((one, vae, schedule), SamplingConfig(steps=4, guidance=2.0, mix_above=mix_above), wanted)

    assert torch.equal(made(model, 1e-9), made(swapped, None))
    assert torch.equal(made(model, 1e9), made(model, None))
    assert not torch.equal(made(model, 2.0), made(model, None))


def test_another_user_is_any_of_the_others():
    found = [another(1, 4, generator(0, "mix", 1, number)) for number in range(100)]
    assert set(found) == {0, 2, 3}
    assert another(0, 1, generator(0, "mix")) == 0


def test_images_are_bytes_without_a_gradient(models):
    result = generate(*models, SamplingConfig(steps=2), WANTED, 0, 4)
    assert result.dtype == torch.uint8
    assert not result.requires_grad


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_images_that_are_no_numbers_are_refused_and_never_black(models, part):
    """Products of finite weights need not be finite."""
    model, vae, schedule = models
    spoilt_unet, spoilt_vae = copy.deepcopy(model), copy.deepcopy(vae)
    with torch.no_grad():
        for weight in (spoilt_unet.unet if part == "unet" else spoilt_vae.decoder).parameters():
            weight.mul_(1e8)
    with pytest.raises(NotFinite, match="the model's images are no finite numbers"):
        images((spoilt_unet, spoilt_vae, schedule))


def test_images_that_show_nothing_are_counted(models, tmp_path, capsys):
    model, vae, schedule = models
    blank = copy.deepcopy(vae)
    nn.init.zeros_(blank.decoder.conv_out.weight)
    for decoder, said in ((vae, ""), (blank, "2 of 2 new images are of a single colour, so the model is spoilt, or")):
        paths = {(0, number): tmp_path / f"{bool(said)}/a/{number}.png" for number in range(2)}
        trained = TrainedLDM(decoder, model, schedule, ["a", "b", "c"])
        fill(tmp_path / str(bool(said)), trained, tiny().sampling, 0, paths)
        warned = [line for line in capsys.readouterr().err.splitlines() if "colour" in line]
        assert len(warned) == bool(said)
        assert said in "".join(warned)


def test_a_folder_killed_after_its_last_image_is_complete_the_next_time(models, tmp_path, monkeypatch):
    model, vae, schedule = models
    trained, paths = TrainedLDM(vae, model, schedule, ["a", "b", "c"]), {(0, 0): tmp_path / "a/0.png"}

    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == folders.INCOMPLETE:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path, trained, tiny().sampling, 0, paths)
    with pytest.raises(UserError, match="is not complete"):
        folders.require_complete(tmp_path)
    assert fill(tmp_path, trained, tiny().sampling, 0, paths) == 1
    folders.require_complete(tmp_path)
