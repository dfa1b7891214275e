"""What the first stage draws and loses in a step, and what it measures and writes at the end."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from nets.vae import AutoencoderKL
from tests.tiny import tiny, tiny_images, tiny_vae
from train.data.latents import measure_scaling
from train.data.split import make_split
from train.runs import model_folder
from train.stages.vae import VAEStage

CPU = torch.device("cpu")
ROWS = torch.tensor([3, 0, 11, 3, 7, 8])
FLIPS = ("data.horizontal_flip=true", "latents.cache_latents=false")


def stage(*settings: str) -> VAEStage:
    config = tiny(*settings)
    data = tiny_images(side=config.data.resolution)
    made = VAEStage(config, data, tiny_vae(config, scaling_factor=None).train(), None)
    made.build(CPU, "no")
    made.split = make_split(data, config.data)
    return made


# ---- first weights

ROOM = "vae.norm_groups=1"


def test_first_weights_follow_from_images_that_train_only():
    one, other = stage(ROOM), stage(ROOM)
    elsewhere = torch.ones(len(other.data), dtype=torch.bool)
    elsewhere[other.split.train] = False
    assert elsewhere.any()
    other.data.images[elsewhere] = 255 - other.data.images[elsewhere]
    one.initialise(), other.initialise()
    assert all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))
    assert not one.model.encoder.down_blocks[0].resnets[0].conv2.weight.any()  # silent, as in a linear one


def test_a_saved_vae_keeps_its_weights():
    made = stage(ROOM, "latents.vae_path=somewhere")
    before = copy.deepcopy(made.model.state_dict())
    made.initialise()
    assert all(map(torch.equal, made.model.state_dict().values(), before.values()))


def test_without_room_first_weights_are_random_and_it_is_said(capsys):
    made = stage()
    before = copy.deepcopy(made.model.state_dict())
    made.initialise()
    assert all(map(torch.equal, made.model.state_dict().values(), before.values()))
    assert "begins with random weights" in capsys.readouterr().out


# ---- a step


def test_a_batch_is_a_function_of_seed_and_step():
    first, again, other = stage(*FLIPS), stage(*FLIPS), stage("seed=1", *FLIPS)
    before = first.draw(5, ROWS)
    torch.manual_seed(99)
    same = again.draw(5, ROWS)
    assert torch.equal(same.images, before.images)
    assert torch.equal(same.noise, before.noise)
    for batch in (first.draw(6, ROWS), other.draw(5, ROWS)):
        assert not torch.equal(batch.noise, before.noise)
        assert not torch.equal(batch.images, before.images)  # flipped otherwise


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_losses_of_parts_are_those_of_the_whole_batch(micro_batch):
    made = stage(*FLIPS)
    batch = made.draw(5, ROWS)
    whole = made.losses(batch, slice(None))
    parts = [made.losses(batch, slice(i, i + micro_batch)) for i in range(0, len(ROWS), micro_batch)]
    for name, losses in whole.items():
        assert losses.shape == (len(ROWS),)
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), losses)


def test_the_adversary_joins_at_its_step_and_not_before():
    made = stage("data.resolution=24", "vae_loss.adversarial_weight=0.5", "vae_loss.adversarial_start=3")
    assert [made.draw(step, ROWS).adversary for step in (2, 3, 4)] == [None, made.adversary, made.adversary]
    assert made.after_step(made.draw(2, ROWS), 1e-3, None) == {}
    assert len(made.learners()) == len(made.models()) == len(made.state()) == 2
    assert stage().adversary is None


# ---- where it begins


def test_every_loss_is_drawn_and_none_shares_the_panel_of_the_sum():
    made = stage("data.resolution=24", "vae_loss.adversarial_weight=0.5", "vae_loss.spectral_weight=1")
    batch = made.draw(5, ROWS)
    losses = made.losses(batch, slice(None))
    assert losses.keys() >= {"loss", "reconstruction", "kl", "spectral", "adversarial"}
    assert losses.keys() <= {name for panel in VAEStage.curves for name in panel}
    assert ("loss",) in VAEStage.curves


def test_random_weights_are_a_function_of_the_seed(monkeypatch):
    monkeypatch.setattr("train.stages.vae.load_images", lambda _: tiny_images())
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(made))
        made.append(VAEStage.open(tiny(f"seed={seed}")).model.decoder.conv_in.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


# ---- its end


def exported(made: VAEStage, folder) -> dict:
    """The statistics of the latents that the export wrote."""
    made.config = replace(made.config, vae_training=replace(made.config.vae_training, output_dir=str(folder)))
    made.export(made.model.eval())
    return json.loads((folder / "final_model/latent_statistics.json").read_text())


def test_the_scaling_factor_is_that_of_the_training_images_alone(tmp_path):
    made = stage()
    expected = measure_scaling(made.model.eval(), made.data, made.split.train, CPU)
    found = exported(made, tmp_path)
    assert found["images"] == len(made.split.train) < len(made.data)
    assert found["scaling_factor"] == pytest.approx(expected["scaling_factor"])
    saved = model_folder.load(tmp_path / "final_model", AutoencoderKL)
    assert saved.config.scaling_factor == found["scaling_factor"]

    repainted = stage()
    images = repainted.data.images.clone()
    images[repainted.split.validation] = images[repainted.split.held_out] = 255
    repainted.data = replace(repainted.data, images=images)
    assert exported(repainted, tmp_path / "again") == found
    images[repainted.split.train] //= 2
    assert exported(repainted, tmp_path / "other")["std"] != found["std"]


# ---- what it keeps


class Painted(torch.nn.Module):
    """A VAE whose reconstructions are these functions of the images; its latents vary in half of their places."""

    def __init__(self, paint):
        super().__init__()
        self.paint = paint

    def encode(self, images):
        self.images = images
        varying = images.mean((1, 2, 3))[:, None, None, None].expand(-1, 1, 4, 4)
        self.mean = torch.cat([varying, torch.ones_like(varying)], 1)
        self.std = torch.full_like(self.mean, 1e-6)
        return self

    def mode(self):
        return self.images

    def decode(self, images):
        return self.paint(images)


def measured(made: VAEStage, paint, folder) -> dict[str, float]:
    found = made.measure(Painted(paint), folder / "picture.png")
    assert (folder / "picture.png").is_file()
    json.loads(json.dumps(found, allow_nan=False))
    return found


def test_psnr_is_that_of_the_validation_images_alone(tmp_path):
    made = stage()
    grey = torch.full_like(made.data.images, 100)
    grey[made.split.validation] = 138
    made.data = replace(made.data, images=grey)
    ten_less = torch.tensor(128 / 127.5 - 1)
    found = measured(made, lambda images: ten_less.expand_as(images), tmp_path)
    assert found["validation_psnr"] == pytest.approx(20 * torch.tensor(25.5).log10().item())


def test_an_identity_keeps_everything_in_finite_figures(tmp_path):
    found = measured(stage(), lambda images: images, tmp_path)
    assert found.pop("validation_psnr") >= 100
    assert found.pop("inactive_latents") == 0.5
    assert list(found) == ["validation_ssim", "power_below_0.125", "power_0.125_to_0.25", "power_above_0.25"]
    assert list(found.values()) == pytest.approx([1, 1, 1, 1])


def test_a_blur_loses_the_more_power_the_finer_the_detail(tmp_path):
    """The noise that the images are becomes the mean of three by three of it: a ninth of its variance."""

    def blur(images):
        return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), "circular"), 3, 1)

    found = measured(stage("data.resolution=32"), blur, tmp_path)
    low, middle, high = (found[name] for name in ("power_below_0.125", "power_0.125_to_0.25", "power_above_0.25"))
    assert 1 > low > middle > high
    assert low > 0.7
    assert high < 0.1
    assert found["validation_ssim"] < 0.6


def test_a_single_validation_image_leaves_out_what_varies(tmp_path):
    made = stage()
    made.split = replace(made.split, validation=made.split.validation[:1])
    assert "inactive_latents" not in measured(made, lambda images: images, tmp_path)
    made.config = replace(made.config, vae_training=replace(made.config.vae_training, output_dir=str(tmp_path)))
    assert "inactive" not in made.export(made.model.eval())


def test_the_end_says_what_is_kept(tmp_path):
    made = stage()
    made.config = replace(made.config, vae_training=replace(made.config.vae_training, output_dir=str(tmp_path)))
    said = made.export(made.model.eval())
    found = made.measure(made.model, tmp_path / "again.png")
    assert f"PSNR {found['validation_psnr']:.2f} dB, SSIM {found['validation_ssim']:.3f}, " in said
    assert f"{100 * found['power_above_0.25']:.1f}% of the power above 0.25 cycles per pixel" in said
    assert f"{100 * found['inactive_latents']:.1f}% of the latents inactive" in said
