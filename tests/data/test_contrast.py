"""Images that show nothing or little are said, with their number, their names and what to do; no others are."""

import numpy as np
import torch
from PIL import Image

from train.config.sections import DataConfig
from train.data.contrast import poor_contrast
from train.data.dataset import load_images

NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
NOISE[0, :2] = [[0], [255]]


def levels(*pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The darkest and the brightest level of each channel."""
    pixels = torch.from_numpy(np.stack(pictures)).int().flatten(1, 2)
    return pixels.amin(1), pixels.amax(1)


def test_a_single_colour_is_none_of_its_channels_varying():
    flat, almost = np.full_like(NOISE, 7), np.full_like(NOISE, 7)
    flat[..., 1] = 200
    almost[3, 3, 2] = 255
    (said,) = poor_contrast(*levels(flat, NOISE, almost), ["a", "b", "c"])
    assert said.startswith("of a single colour, so nothing can be learned from them: 1 of 3 images (a);")


def test_few_levels_are_fewer_than_a_quarter_of_all():
    pictures = [NOISE // step + 20 for step in (17, 5, 3)]  # 16, 52 and 86 levels
    (said,) = poor_contrast(*levels(*pictures, NOISE), list("abcd"))
    assert said.startswith("of at most 52 of the 256 grey levels, so hardly to be seen by networks: 2 of 4 images (a,")


def test_one_even_channel_of_its_own_level_is_no_poor_contrast():
    picture = NOISE // 8
    picture[..., 2] += 150
    assert poor_contrast(*levels(picture, NOISE), ["a", "b"]) == []


def test_files_that_programs_save_wrongly_are_said(tmp_path, capsys):
    """12-bit values in 16-bit files, black ink on transparency, a key that is all the ink."""
    twelve = np.random.default_rng(0).integers(0, 4096, (8, 8), np.uint16)
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:5, 2:5, 3] = 255
    key = np.where(ink[..., 3] > 0, 255, 0).astype(np.uint8)
    (tmp_path / "ID1").mkdir()
    for name, picture, options in (
        ("12-bit", twelve, {}), ("ink", ink, {}), ("key", key, {"transparency": 255}), ("plain", NOISE, {}),
    ):  # fmt: skip
        Image.fromarray(picture).save(tmp_path / f"ID1/{name}.png", **options)
    load_images(DataConfig(str(tmp_path), resolution=8))
    flat, faint = capsys.readouterr().err.splitlines()
    assert flat.startswith(f"{tmp_path}: of a single colour,")
    assert "2 of 4 images (ID1/ink.png, ID1/key.png);" in flat
    assert "of at most 16 of the 256 grey levels" in faint
    assert "1 of 4 images (ID1/12-bit.png);" in faint
