"""What a run leaves comes back as it was, and what does not go together is refused by name."""

import contextlib
import itertools
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from tests.tiny import tiny, tiny_denoiser, tiny_images, tiny_vae
from train.base.errors import UserError
from train.config.schema import Config
from train.data.split import load_split, make_split
from train.runs import model_folder
from train.runs.final_model import (
    config_path,
    load_frozen_vae,
    load_ldm,
    load_users,
    load_vae,
    save_ldm,
    save_users,
    save_vae,
    split_path,
    trained_users,
)

STATISTICS = {"scaling_factor": 0.8, "images": 3}


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---- of a VAE


def vae_in(folder, *settings: str, scaling_factor: float | None = 0.8):
    config, data = tiny(*settings), tiny_images()
    vae = tiny_vae(config, scaling_factor)
    vae.config = replace(vae.config, sample_size=16)
    save_vae(folder, vae, STATISTICS, config, data, make_split(data, config.data))
    return vae


def test_a_vae_comes_back_with_its_config_split_and_statistics(tmp_path):
    saved, config, data = vae_in(tmp_path), tiny(), tiny_images()
    vae = load_vae(tmp_path, config)
    assert vae.config == saved.config
    assert same_weights(vae, saved)
    assert Config.read(config_path(tmp_path)) == config
    split = load_split(split_path(tmp_path), data, config.data)
    assert torch.equal(split.held_out, make_split(data, config.data).held_out)
    assert json.loads((tmp_path / "latent_statistics.json").read_text()) == STATISTICS


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_model_whose_saving_was_cut_off_is_the_one_before(tmp_path, monkeypatch, stage):
    """Of the new one nothing is there, wherever among its files a process was killed."""

    def save(seed: int) -> None:
        config, data = tiny(f"seed={seed}"), tiny_images()
        split = make_split(data, config.data)
        if stage == "vae":
            save_vae(tmp_path / "m", tiny_vae(config, 0.8 + seed, seed), {"of": seed}, config, data, split)
        else:
            models = tiny_denoiser(config, seed=seed), tiny_vae(config, seed=seed)
            save_ldm(tmp_path / "m", *models, config, data, split)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()}

    save(seed=0)
    before = contents()
    for number in itertools.count():
        calls, replace = itertools.count(), os.replace

        def killed(*paths, calls=calls, replace=replace, number=number) -> None:
            if next(calls) == number:
                raise KeyboardInterrupt
            replace(*paths)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            save(seed=1)
            break
        assert contents() == before
    assert number == len(before) + 2  # each file, and the folder's two renames
    assert contents().keys() == before.keys()
    assert all(contents()[file] != before[file] for file in before if file.endswith((".safetensors", "config.yaml")))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_a_full_disk_in_a_final_model_is_answered_with_the_file(tmp_path, monkeypatch, stage):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    config, data = tiny(), tiny_images()
    split, vae, file = make_split(data, config.data), tiny_vae(config), "diffusion_pytorch_model.safetensors"
    if stage == "vae":
        message = refused(save_vae, tmp_path / "m", vae, STATISTICS, config, data, split)
    else:
        message = refused(save_ldm, tmp_path / "m", tiny_denoiser(config), vae, config, data, split)
    where = tmp_path / "m" / ("" if stage == "vae" else "vae") / file
    assert message == f"{where}: cannot be written (No space left on device)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("vae.latent_channels=8", "the VAE has 4 channels where unet.latent_channels is 8"),
        ("data.channels=1", "the VAE has 3 channels where data.channels is 1"),
    ],
)
def test_a_vae_of_other_channels_is_refused_with_both_numbers(tmp_path, setting, words):
    vae_in(tmp_path)
    assert words in refused(load_vae, tmp_path, tiny(setting))


def test_a_vae_that_cannot_divide_the_images_is_refused(tmp_path):
    vae_in(tmp_path, "vae.channels=[8, 8, 8, 8]")
    message = refused(load_vae, tmp_path, tiny("data.resolution=12"))
    assert "divides each side by 8, which data.resolution 12 is not a multiple of" in message


def test_a_frozen_vae_has_no_gradients_and_ended_its_training(tmp_path):
    vae_in(tmp_path / "ended")
    assert not any(p.requires_grad for p in load_frozen_vae(tmp_path / "ended", tiny()).parameters())
    vae_in(tmp_path / "not ended", scaling_factor=None)
    assert "has no scaling_factor" in refused(load_frozen_vae, tmp_path / "not ended", tiny())
    assert "there is no VAE here" in refused(load_frozen_vae, tmp_path / "none", tiny())


# ---- of an LDM


@pytest.fixture
def ldm(tmp_path):
    config, data = tiny(), tiny_images()
    denoiser, vae = tiny_denoiser(config), tiny_vae(config)
    save_ldm(tmp_path, denoiser, vae, config, data, make_split(data, config.data))
    return tmp_path


def test_an_ldm_comes_back_with_its_users_config_and_split(ldm):
    config, data = tiny(), tiny_images()
    trained = load_ldm(ldm, config)
    assert same_weights(trained.denoiser, tiny_denoiser(config))
    assert same_weights(trained.vae, tiny_vae(config))
    assert trained.schedule.config == config.schedule
    assert not trained.denoiser.training
    assert not trained.vae.training
    assert trained_users(ldm) == data.user_names
    assert Config.read(config_path(ldm)) == config
    split = load_split(split_path(ldm), data, config.data)
    assert torch.equal(split.held_out, make_split(data, config.data).held_out)


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("vae", ["vae.latent_channels=8"], "the vae's latent_channels is 8, but the unet's in_channels is 4"),
        ("vae", ["data.channels=1"], "the vae's in_channels is 1, but the data.channels is 3"),
        ("vae", ["vae.channels=[8, 8, 8]"], "the unet's sample_size is 8, but the data.resolution divided by"),
        ("condition_encoder", ["unet.cross_attention_dim=24"], "the condition_encoder's dim is 24, but the unet's"),
        ("condition_encoder", [], "num_users is 4, but the number of names in users.json is 3"),
    ],
)
def test_parts_of_different_models_are_refused_with_both_numbers(ldm, part, settings, words):
    config = tiny(*settings)
    other = tiny_vae(config) if part == "vae" else tiny_denoiser(config, num_users=3 if settings else 4).user_encoder
    model_folder.save(other, ldm / part)
    message = refused(load_ldm, ldm, tiny())
    assert words in message
    assert "do not go together" in message


def test_an_ldm_with_an_unfinished_vae_is_refused(ldm):
    model_folder.save(tiny_vae(tiny(), scaling_factor=None), ldm / "vae")
    assert "vae/config.json: has no scaling_factor" in refused(load_ldm, ldm, tiny())


def test_more_sampling_steps_than_trained_timesteps_are_refused(ldm):
    model_folder.save_schedule(replace(tiny().schedule, num_train_timesteps=3), ldm / "scheduler")
    message = refused(load_ldm, ldm, tiny())
    assert "sampling.steps is 4, but the model was trained with 3 timesteps" in message


@pytest.mark.parametrize("deeper", ["final_model", "ldm/final_model"])
def test_where_no_ldm_is_the_nearest_one_is_named(tmp_path, deeper):
    assert "there is no trained LDM here; run" in refused(trained_users, tmp_path)
    save_users(["ID1"], tmp_path / deeper)
    assert f"did you mean {tmp_path / deeper}?" in refused(trained_users, tmp_path)
    assert trained_users(tmp_path / deeper) == ["ID1"]


# ---- users


def test_names_of_users_come_back_in_their_order(tmp_path):
    names = ["ID2", "ID10", "Žofie", "用户 7", "🚶 walker", "a b", "İ", "..x"]
    save_users(names, tmp_path)
    assert load_users(tmp_path) == names


@pytest.mark.parametrize("value", [None, 3, "ID1", [1, 2], {"ID1": 0}])
def test_users_that_are_no_list_of_names_are_refused(tmp_path, value):
    (tmp_path / "users.json").write_text(json.dumps({"users": value}))
    assert "users.json: 'users' must be a list of names" in refused(load_users, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "/"])
def test_a_user_whose_name_is_no_folder_is_refused(tmp_path, name):
    save_users(["ID1", name], tmp_path)
    assert f"users.json: the user {name!r} is not the name of a folder" in refused(load_users, tmp_path)


@pytest.mark.parametrize(("names", "words"), [([], "names no user"), (["ID1", "ID1"], "'ID1' stands there twice")])
def test_no_users_and_users_named_twice_are_refused(tmp_path, names, words):
    save_users(names, tmp_path)
    assert words in refused(load_users, tmp_path)
