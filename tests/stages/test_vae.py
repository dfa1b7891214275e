"""What the first stage draws and loses in a step, and what it measures and writes at the end."""

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
    images[repainted.split.validation] = 255
    repainted.data = replace(repainted.data, images=images)
    assert exported(repainted, tmp_path / "again") == found
    images[repainted.split.train] //= 2
    assert exported(repainted, tmp_path / "other")["std"] != found["std"]


def test_psnr_is_that_of_the_validation_images_alone(tmp_path):
    made = stage()
    rows, data = made.split.validation, made.data
    grey = torch.full_like(data.images, 100)
    grey[rows] = 138
    made.data = replace(data, images=grey)

    class Grey(torch.nn.Module):
        def encode(self, images):
            return self

        def mode(self):
            return None

        def decode(self, _):
            return torch.full((len(rows), 3, 16, 16), 128 / 127.5 - 1)  # ten less than there is

    psnr = made.write_reconstructions(Grey(), tmp_path / "picture.png")
    assert psnr == pytest.approx(20 * torch.tensor(25.5).log10().item())
    assert (tmp_path / "picture.png").is_file()
