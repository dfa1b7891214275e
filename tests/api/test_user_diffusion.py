"""A trained model in Python: its images are those of the command, and what is wrong is said of the argument."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import USERS, tiny, tiny_denoiser, tiny_images, tiny_vae
from train import sample
from train.api import UserDiffusion
from train.base.errors import BadArgument, UserError
from train.base.randomness import generator
from train.data.split import make_split
from train.judge import purpose
from train.runs.final_model import save_ldm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config, data = tiny(), tiny_images()
    data.user_names[:] = USERS
    folder = tmp_path_factory.mktemp("run") / "final_model"
    save_ldm(folder, tiny_denoiser(config), tiny_vae(config), config, data, make_split(data, config.data))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> UserDiffusion:
    return UserDiffusion.load(folder)


def as_png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("", {}), ("--steps 3 --guidance 2.5", {"steps": 3, "guidance": 2.5}),
        ("--sampler ddpm --set sampling.batch_size=2", {"sampler": "ddpm", "batch_size": 2}),
        ("--set sampling.guidance_interval=[0.1,5]", {"guidance_interval": (0.1, 5)}),
        ("--purpose augment", {"purpose": "augment"}), ("--purpose augment --guidance 2", {"guidance": 2}),
    ],
)  # fmt: skip
def test_a_seed_gives_the_files_of_the_command(folder, model, tmp_path, monkeypatch, flags, arguments):
    """Byte for byte, over batches of images of several users."""
    monkeypatch.setattr(purpose, "choose_now", lambda *_: {"guidance": 3.0, "mix_above": 3.0})
    command = ["--model", str(folder), "--output_dir", str(tmp_path / "made"), "--num_images", "3", "--seed", "42"]
    sample.main([*command, "--users", "ID10", "ID1", *flags.split()])
    images = model.sample(["ID10", "ID1"], per_user=3, seed=42, **arguments)
    assert list(images) == ["ID10", "ID1"]
    for user, of_user in images.items():
        files = sorted((tmp_path / "made" / user).iterdir())
        assert [file.read_bytes() for file in files] == [as_png(image) for image in of_user]


def test_what_python_writes_the_command_does_not_make_again(folder, model, tmp_path, capsys):
    written = model.write("ID2", 2, 7, folder=tmp_path / "made")
    assert written.images == {"ID2": [tmp_path / f"made/ID2/generated_00{number}.png" for number in (0, 1)]}
    assert (written.there, written.shown) == (0, "")
    sample.main(["--model", str(folder), "--num_images", "2", "--seed", "7", "--output_dir", str(written.folder)])
    assert "6 images of 3 users" in (said := capsys.readouterr().out)
    assert "(2 there already)" in said
    assert model.write(None, 2, 7, folder=tmp_path / "made").there == 6
    assert model.write("ID2", 1).folder.parent == folder.parent / "generated"


def test_the_pixels_are_the_same_of_each_kind(model):
    pictures, tensors, arrays = (model.sample(per_user=2, kind=kind) for kind in ("pillow", "tensor", "array"))
    assert list(pictures) == list(USERS)
    for user in USERS:
        assert (tensors[user].shape, tensors[user].dtype) == ((2, 3, 16, 16), torch.uint8)
        assert np.array_equal(arrays[user], tensors[user].permute(0, 2, 3, 1))
        assert np.array_equal(np.stack(pictures[user]), arrays[user])


def test_latents_that_come_out_are_those_of_the_images(model):
    latents = model.sample("ID1", per_user=4, kind="latents")["ID1"]
    assert latents.shape == (4, 4, 8, 8)
    assert torch.equal(model.decode(latents, "tensor"), model.sample("ID1", per_user=4, kind="tensor")["ID1"])


@pytest.mark.parametrize("sampler", ["dpm", "ddpm"])
def test_noise_that_goes_in_takes_the_place_of_the_seeds(model, sampler):
    def made(**more) -> dict:
        return model.sample(["ID1", "ID2"], 3, 5, sampler=sampler, kind="tensor", **more)

    own = {
        name: torch.stack([torch.randn(4, 8, 8, generator=generator(5, "images", user, i)) for i in range(3)])
        for user, name in enumerate(USERS)
    }
    assert equal(made(latents=own), made())
    turned = made(latents={"ID1": own["ID1"], "ID2": own["ID2"].flip(1)})
    assert torch.equal(turned["ID1"], made()["ID1"])
    assert not torch.equal(turned["ID2"], made()["ID2"])


def test_a_callback_sees_each_step_of_each_batch(model):
    seen = []
    latents = model.sample(["ID2", "ID1"], 3, steps=3, sampler="dpm", kind="latents", callback=seen.append)
    wanted = [(user, number) for user in ("ID2", "ID1") for number in range(3)]
    assert [(one.images, one.step, one.steps) for one in seen] == [
        (batch, step, 3) for batch in (wanted[:4], wanted[4:]) for step in (1, 2, 3)
    ]
    last = torch.cat([one.latents for one in seen if one.step == 3])
    assert torch.equal(last, torch.cat(list(latents.values())))
    assert all(torch.equal(one.latents, one.clean) == (one.step == 3) for one in seen)  # DPM++ ends in its estimate


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"users": "ID11"}, r"users 'ID11': not a user of this model \(did you mean ID1\?\); it knows ID1, ID2, ID10"),
        ({"users": [3]}, "users '3': not a user"), ({"users": []}, "users: none is named"),
        ({"per_user": 0}, "per_user 0: must be at least 1"), ({"per_user": 2.5}, r"per_user 2\.5: must be a whole"),
        ({"per_user": 10**6}, "per_user 1000000: must be at most 100000; take"), ({"seed": -1}, "seed -1: must be at"),
        ({"seed": "42"}, "seed '42': must be a whole"), ({"steps": 0}, r"sampling\.steps=0: .* must be at least 1"),
        ({"steps": 1001}, "more than the 1000 of"), ({"guidance": "much"}, "guidance='much': .* must be a finite"),
        ({"stepz": 3}, 'unknown key "stepz" in section sampling .did you mean steps'),
        ({"sampler": "dpmm"}, "must be one of ddpm, .* not dpmm .did you mean dpm"),
        ({"kind": "jpeg"}, "kind 'jpeg': must be one of pillow"), ({"purpose": "fun"}, "purpose 'fun': must be one of"),
        ({"latents": {"ID1": torch.zeros(1, 4, 8, 8)}}, r"latents of 'ID2': must be .* shape \(1, 4, 8, 8\)"),
        ({"latents": dict.fromkeys(USERS, torch.zeros(1, 4, 8, 8).int())}, "latents of 'ID1': must be a tensor of flo"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence_about_the_argument(model, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        model.sample(**{"per_user": 1} | arguments)


def test_a_folder_without_a_model_says_what_is_near(folder):
    with pytest.raises(UserError, match=f"there is no trained LDM here .did you mean {folder}"):
        UserDiffusion.load(folder.parent)


def test_the_parts_are_those_that_are_sampled_with(folder):
    model = UserDiffusion.load(folder, {"sampling.steps": 2})
    before = model.sample("ID1", 1, kind="tensor")
    assert model.to("cpu") is model
    for part in (model.unet.conv_out, model.vae.decoder.conv_out, model.user_encoder.embedding):
        part.weight.data.add_(0.1)
        after = model.sample("ID1", 1, kind="tensor")
        assert not equal(before, after)
        before = after
    assert model.config.sampling.steps == 2
    assert model.schedule.alpha.shape == (1000,)


@pytest.mark.parametrize("device", ["cuda:77", "no device", "xpu"])
def test_a_device_that_is_not_there_is_refused_in_a_sentence(model, device):
    with pytest.raises(UserError, match=f"device {device}: cannot be used here .*; cpu always can"):
        model.to(device)


def test_a_command_says_of_its_flag_what_is_wrong_with_an_argument(folder):
    for words, sentence in (("--num_images 0", "--num_images 0: must"), ("--users X", "--users 'X': not")):
        with pytest.raises(UserError, match=sentence) as refused:
            sample.main(["--model", str(folder), *words.split()])
        assert not isinstance(refused.value, BadArgument)
