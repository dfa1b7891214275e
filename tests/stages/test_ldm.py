"""What the second stage looks at before it begins, and the numbers that a step of it draws."""

from dataclasses import replace

import pytest
import torch

from diffusion.schedule import ScheduleConfig
from tests.tiny import tiny, tiny_images, tiny_vae
from train.data.latents import cached_moments
from train.data.split import make_split
from train.stages.ldm import LDMStage, warn_of_vanishing_signal

CPU = torch.device("cpu")
ROWS = torch.tensor([3, 0, 11, 3, 7, 8])  # any


def stage(*settings: str) -> LDMStage:
    config, data = tiny(*settings), tiny_images()
    made = LDMStage(config, data, tiny_vae(config))
    made.build(CPU, "no")
    made.split = make_split(data, config.data)
    return made


# ---- the schedule


def test_no_signal_at_all_is_no_matter_to_another_prediction(capsys):
    warn_of_vanishing_signal(ScheduleConfig(zero_terminal_snr=True, prediction="velocity"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "prediction", "warned"),
    [
        ("cosine", "noise", True), ("cosine", "velocity", False), ("cosine", "x0", False), ("linear", "noise", False),
        ("scaled_linear", "noise", False),
    ],
)  # fmt: skip
def test_noise_prediction_with_hardly_any_signal_is_warned_of(capsys, kind, prediction, warned):
    warn_of_vanishing_signal(ScheduleConfig(kind=kind, prediction=prediction))
    said = capsys.readouterr().err
    assert said.count("\n") == warned
    assert ("multiplied by 20," in said and "set schedule.prediction to velocity" in said) == warned


# ---- the latents


def test_latents_are_cached_in_the_runs_folder_where_asked_for(tmp_path):
    cached, encoded = stage(), stage("latents.cache_latents=false")
    cached.begin(tmp_path / "run")
    encoded.begin(tmp_path / "other")
    assert len(list((tmp_path / "run/latent_cache").iterdir())) == 1
    rows = cached.split.training
    expected = cached_moments(cached.vae, cached.data, rows, tmp_path / "run/latent_cache", CPU)
    assert torch.equal(cached.source.moments[:], expected[:])
    assert encoded.source.moments is None
    assert not (tmp_path / "other/latent_cache").exists()


def test_the_loss_is_the_same_of_cached_latents_and_encoded_ones(tmp_path):
    cached, encoded = stage(), stage("latents.cache_latents=false")
    for made in (cached, encoded):
        made.begin(tmp_path)
    rows = cached.split.training.flip(0)
    losses = [made.losses(made.draw(5, rows), slice(None))["loss"] for made in (cached, encoded)]
    torch.testing.assert_close(*losses)


def test_training_never_sees_what_is_held_out(tmp_path):
    """All that it keeps, its validation and its pictures are the same with other images held out."""
    made, other = stage(), stage()
    other.data.images[other.split.held_out] = 255
    for folder, one in ((tmp_path / "made", made), (tmp_path / "other", other)):
        one.begin(folder)
        assert one.write_samples(one.model.eval(), folder / "samples.png") == 0  # none is a copy
    files = [
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("made", "other")
    ]
    assert {"samples.png", "begun_with/vae/config.json"} < files[0].keys()
    assert files[0] == files[1]
    assert made.validation_losses(made.model, 4) == other.validation_losses(other.model, 4)


# ---- the numbers of a step


def tensors_of(batch) -> list[torch.Tensor]:
    return [batch.rows, batch.flips, batch.users, batch.diffusion.t, batch.diffusion.noise, batch.diffusion.dropped,
            batch.latent_noise, batch.keep]  # fmt: skip


def test_a_batch_is_a_function_of_seed_and_step():
    first, again, other = stage(), stage(), stage("seed=1")
    before = tensors_of(first.draw(5, ROWS))
    torch.manual_seed(99)
    assert all(map(torch.equal, tensors_of(again.draw(5, ROWS)), before))
    for batch in (first.draw(6, ROWS), other.draw(5, ROWS)):
        assert not torch.equal(batch.diffusion.noise, before[4])
        assert not torch.equal(batch.latent_noise, before[6])
    assert before[2].tolist() == (ROWS % 3).tolist()  # whose the images are


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_losses_of_parts_are_those_of_the_whole_batch(micro_batch):
    made = stage("latents.cache_latents=false", "data.horizontal_flip=true", "ldm_loss.condition_dropout=0.5")
    batch = made.draw(5, ROWS)
    assert 0 < batch.flips.sum() < len(ROWS)
    assert 0 < batch.diffusion.dropped.sum() < len(ROWS)
    parts = [made.losses(batch, slice(i, i + micro_batch))["loss"] for i in range(0, len(ROWS), micro_batch)]
    torch.testing.assert_close(torch.cat(parts), made.losses(batch, slice(None))["loss"])


def test_a_validation_drops_and_flips_nothing_and_is_the_same():
    made = stage("latents.cache_latents=false", "data.horizontal_flip=true", "ldm_loss.condition_dropout=0.5")
    batch = made.draw_validation(ROWS, made.data.user_index[ROWS])
    assert not batch.flips.any()
    assert not batch.diffusion.dropped.any()
    assert batch.keep is None
    average = made.model.eval()
    whole = made.validation_losses(average, 8)
    torch.rand(7)
    assert made.validation_losses(average, 1) == pytest.approx(whole, rel=1e-5)


def test_a_loss_of_another_model_is_that_models():
    made, other = stage(), stage("seed=1")
    batch = made.draw(5, ROWS)
    found = made.losses(batch, slice(None), other.model)["loss"]
    made.model = other.model
    assert torch.equal(found, made.losses(batch, slice(None))["loss"])


def test_the_actual_config_is_that_of_the_vae_that_is_there():
    config = tiny()
    vae = tiny_vae(tiny("vae.channels=[8, 8]"))
    made = LDMStage(config, tiny_images(), vae)
    assert made.actual_config == replace(config, vae=vae.config)
