"""The lines for users of `diffusers` do what is said of them."""

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.guidance import guided
from diffusion.sampling import SamplingConfig, sample
from tests.tiny import tiny, tiny_denoiser, tiny_images, tiny_vae
from train.base.errors import UserError
from train.data.images import to_picture, to_uint8
from train.data.latents import measure_scaling, require_sane_latents
from train.data.split import make_split
from train.runs.diffusers import vae_to_diffusers
from train.runs.final_model import load_frozen_vae, load_ldm, save_ldm

TEXT = (Path(__file__).parent.parent / "docs/diffusers.md").read_text("utf-8")
LINES = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
CHOICES = re.compile(r"^model, user, steps, guidance, seed = .*$", re.MULTILINE)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        ((), 3),
        (("unet.condition_in_time_embedding=true", "user_encoder.tokens_per_user=2"), 3),
        (("data.channels=1",), 1),
    ],
)
@torch.no_grad()
def test_the_lines_make_the_image_that_we_make_from_the_same_noise(tmp_path, monkeypatch, settings, channels):
    config, data = tiny(*settings), tiny_images(channels=channels)
    denoiser, vae = tiny_denoiser(config), tiny_vae(config)
    save_ldm(tmp_path / "model", denoiser, vae, config, data, make_split(data, config.data))
    monkeypatch.chdir(tmp_path)
    lines, replaced = CHOICES.subn('model, user, steps, guidance, seed = "model", "ID1", 4, 1.5, 7', LINES)
    assert replaced == 1
    exec(compile(lines, "docs/diffusers.md", "exec"), {})

    ours = load_ldm(Path("model"), config)
    encoder, unet = ours.denoiser.user_encoder, ours.denoiser.unet
    user = torch.tensor([1])
    denoised = guided(unet, encoder(user), encoder(user, torch.tensor([True])), 1.5, None)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    latents = sample(denoised, noise, ours.schedule, SamplingConfig("dpm", 4), lambda: noise)
    expected = to_picture(to_uint8(ours.vae.decode(latents / ours.vae.config.scaling_factor))[0])
    with Image.open("ID1.png") as made:
        assert (made.mode, made.size) == (expected.mode, expected.size)
        assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 1  # a rounding apart


def test_a_vae_of_theirs_is_refused_with_the_scale_that_makes_it_fit(tmp_path):
    config, data, rows = tiny(), tiny_images(count=40), torch.arange(40)
    options = vae_to_diffusers(tiny_vae(config).config) | {"scaling_factor": 0.18215}
    theirs = diffusers.AutoencoderKL(**options)
    theirs.save_pretrained(tmp_path)
    vae = load_frozen_vae(tmp_path, config)
    right = measure_scaling(vae, data, rows, torch.device("cpu"))["scaling_factor"]
    assert not 0.5 < 0.18215 / right < 2
    with pytest.raises(UserError, match=r'its scaling_factor, 0\.18215, is not its own.*"scaling_factor": ') as refused:
        require_sane_latents(vae, data, rows, torch.device("cpu"))
    named = float(re.search(r'"scaling_factor": ([^,]+), as measured over 40', str(refused.value))[1])
    assert named == pytest.approx(right, rel=1e-4)
    theirs.register_to_config(scaling_factor=named)
    theirs.save_pretrained(tmp_path)
    again = load_frozen_vae(tmp_path, config)
    assert require_sane_latents(again, data, rows, torch.device("cpu")) == pytest.approx(1, 0.1)
