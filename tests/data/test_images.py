"""Laws of one image: from a file to pixels, to what a network takes, and back. Every picture is made here."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from train.base.errors import UserError
from train.config.sections import DataConfig
from train.data.images import read_image, save_picture, to_float, to_picture, to_uint8


def grey(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L", size, value)


def save(path, image, **options):
    image.save(path, **options)
    return path


def read(path, side: int, channels: int) -> np.ndarray:
    """The pixels as Pillow has them: height, width, channels."""
    pixels = read_image(path, DataConfig(resolution=side, channels=channels))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, side, side)
    return pixels.permute(1, 2, 0).numpy()


def refused(path) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        read_image(path, DataConfig(resolution=8))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- pixels


def rgba(colour: tuple[int, int, int, int]) -> Image.Image:
    return Image.new("RGBA", (8, 8), colour)


def palette(*colours: int) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette(colours)
    return image


def grey16(value: int, dtype="uint16") -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype))


CASES = {
    "1-bit.png": (Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
    "1-bit.bmp": (Image.new("1", (8, 8), 0), {}, (0, 0, 0)),
    "1-bit.tif": (Image.new("1", (8, 8), 1), {"compression": "group4"}, (255, 255, 255)),
    "grey.png": (grey(77), {}, (77, 77, 77)),
    "grey.pgm": (grey(77), {}, (77, 77, 77)),
    "grey.jpg": (grey(77), {"quality": 100}, (77, 77, 77)),
    "grey with alpha.png": (Image.new("LA", (8, 8), (200, 128)), {}, (100, 100, 100)),
    "16-bit.png": (grey16(32896), {}, (128, 128, 128)),
    "16-bit white.png": (grey16(65535), {}, (255, 255, 255)),
    "16-bit dark.png": (grey16(257), {}, (1, 1, 1)),
    "16-bit.pgm": (grey16(32896, "int32"), {}, (128, 128, 128)),
    "16-bit.tif": (grey16(32896), {}, (128, 128, 128)),
    "16-bit big endian.tif": (grey16(32896, ">u2"), {}, (128, 128, 128)),
    "16-bit packed.tiff": (grey16(65535), {"compression": "tiff_lzw"}, (255, 255, 255)),
    "colour.png": (Image.new("RGB", (8, 8), (1, 2, 3)), {}, (1, 2, 3)),
    "colour.bmp": (Image.new("RGB", (8, 8), (1, 2, 3)), {}, (1, 2, 3)),
    "colour.webp": (Image.new("RGB", (8, 8), (1, 2, 3)), {"lossless": True}, (1, 2, 3)),
    "colour.tif": (Image.new("RGB", (8, 8), (1, 2, 3)), {}, (1, 2, 3)),
    "palette.png": (palette(0, 0, 0, 10, 20, 30), {}, (10, 20, 30)),
    "palette.gif": (palette(0, 0, 0, 10, 20, 30), {}, (10, 20, 30)),
    "palette with alpha.png": (palette(0, 0, 0, 10, 20, 30), {"transparency": b"\xff\x33"}, (2, 4, 6)),
    "transparent.png": (rgba((250, 100, 0, 0)), {}, (250, 100, 0)),
    "half transparent.png": (rgba((250, 100, 0, 51)), {}, (50, 20, 0)),
    "opaque.webp": (rgba((250, 100, 0, 255)), {"lossless": True}, (250, 100, 0)),
    "cmyk red.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, (255, 0, 0)),
    "cmyk black.tif": (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), {}, (0, 0, 0)),
    "cmyk red.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
    "a suffix that lies.jpg": (grey(77), {"format": "PNG"}, (77, 77, 77)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_format_and_mode_gives_its_known_colour(tmp_path, name):
    image, options, colour = CASES[name]
    path = save(tmp_path / name, image, **options)
    assert (read(path, 8, 3) == colour).all()


@pytest.mark.parametrize("name", CASES)
def test_one_channel_is_the_luma_of_three(tmp_path, name):
    image, options, (red, green, blue) = CASES[name]
    pixels = read(save(tmp_path / name, image, **options), 8, 1)
    assert np.abs(pixels - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.51


def halves(left: int | tuple, right: int | tuple, mode: str = "L") -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


KEYED = {
    "grey": (halves(77, 200), {"transparency": 77}),
    "16-bit grey": (Image.fromarray(np.repeat([[77 * 257] * 4 + [200 * 257] * 4], 8, 0).astype(np.uint16)),
                    {"transparency": 77 * 257}),
    "colour": (halves((77, 77, 77), (200, 200, 200), "RGB"), {"transparency": (77, 77, 77)}),
    "palette": (halves(77, 200).convert("P"), {"transparency": 77}),
    "1-bit": (halves(0, 255).convert("1"), {"transparency": 0}),
    "alpha": (halves((77, 77, 77, 0), (200, 200, 200, 255), "RGBA"), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYED)
def test_transparent_pixels_are_black_unless_all_are(tmp_path, name):
    """A key, or an alpha channel, that leaves nothing of an image is a mistake of the program that saved it."""
    image, options = KEYED[name]
    assert set(read(save(tmp_path / "a.png", image, **options), 8, 3)[0, :, 0][:4]) == {0}
    assert read(save(tmp_path / "a.png", image, **options), 8, 3)[0, 7, 0] in (200, 255)
    left = image.crop((0, 0, 4, 8))
    assert set(read(save(tmp_path / "a.png", left, **options), 8, 3).flat) == {0 if name == "1-bit" else 77}


def test_a_32_bit_bmp_whose_alpha_is_0_everywhere_is_opaque(tmp_path):
    path = save(tmp_path / "a.bmp", rgba((250, 100, 0, 0)))
    assert (read(path, 8, 3) == (250, 100, 0)).all()


def test_all_levels_of_16_bits_round_to_the_nearest_of_8(tmp_path):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read(save(tmp_path / "a.png", Image.fromarray(levels)), 256, 1)[..., 0]
    assert np.abs(pixels * 257.0 - levels).max() <= 128


def test_pgm_of_any_white_is_scaled_to_its_white(tmp_path):
    for white, value in ((15, 15), (1000, 1000), (255, 255)):
        (tmp_path / "a.pgm").write_text(f"P2 8 8 {white} {' '.join([str(value)] * 64)}")
        assert (read(tmp_path / "a.pgm", 8, 1) == 255).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [palette(0, 0, 0, 10, 20, 30), palette(0, 0, 0, 200, 200, 200)]
    save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.gif", 8, 3) == (10, 20, 30)).all()


def test_a_photograph_is_turned_as_its_exif_asks(tmp_path):
    corner = np.zeros((8, 8), np.uint8)
    corner[:4, :4] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name in ("a.png", "a.tif"):
        pixels = read(save(tmp_path / name, Image.fromarray(corner), exif=exif), 8, 1)
        assert (pixels[..., 0] == corner[:, ::-1]).all()  # top right


def test_a_checkerboard_shrinks_to_grey_without_aliasing(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = read(save(tmp_path / "a.png", Image.fromarray(board)), 32, 1).astype(int)
    assert np.abs(pixels - 127.5).max() <= 4


def test_an_oblong_image_is_stretched_and_keeps_its_edges(tmp_path):
    bars = np.zeros((16, 64), np.uint8)
    bars[:, :16], bars[:, -16:] = 255, 128
    row = read(save(tmp_path / "a.png", Image.fromarray(bars)), 32, 1)[16, :, 0]
    assert (row[0], row[16], row[-1]) == (255, 0, 128)


def test_an_image_of_the_right_size_is_not_changed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert (read(save(tmp_path / "a.png", Image.fromarray(noise)), 16, 3) == noise).all()


# ---- unreadable files


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "empty.png": b"",
    "text.png": b"this is no image",
    "truncated.png": png_bytes()[:500],
    "damaged.png": png_bytes()[:100] + b"\xff" * 50 + png_bytes()[150:],
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "webp.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    assert name in refused(tmp_path / name)


def test_what_is_no_file_is_refused_by_name(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for name in ("folder.png", "link.png", "none.png"):
        assert f"{name}: cannot be read (not a file)" in refused(tmp_path / name)


@pytest.mark.parametrize("limit", [500, 1000])  # Pillow warns above its limit, raises above twice its limit
def test_a_decompression_bomb_is_refused_not_decoded(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", grey(0, (32, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "bomb" in refused(path)


@pytest.mark.parametrize("error", [AttributeError("no 'encode'"), RecursionError("a\nb"), MemoryError(), KeyError(3)])
def test_whatever_a_decoder_raises_is_the_sentence_of_its_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert refused(save(tmp_path / "a.png", grey(0))).startswith(f"{tmp_path / 'a.png'}: cannot be read (")


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)
    assert "a.png: cannot be read (larger than 1 GiB)" in refused(tmp_path / "a.png")


def test_a_side_of_millions_of_pixels_and_10_8_in_all_are_read(tmp_path):
    """The one through a box filter first; of the other the header at least is no reason to refuse it."""
    image = grey(50, (1_000_000, 1))
    image.paste(200, (500_000, 0, 1_000_000, 1))
    row = read(save(tmp_path / "a.png", image), 8, 1)[3, :, 0]
    assert np.abs(row.astype(int) - np.repeat([50, 200], 4)).max() <= 20  # rings beside the step
    assert (row[0], row[-1]) == (50, 200)
    assert Image.MAX_IMAGE_PIXELS > 2 * 10**8


def test_pixels_without_an_agreed_white_are_refused(tmp_path):
    save(tmp_path / "f.tif", Image.fromarray(np.ones((8, 8), np.float32)))
    save(tmp_path / "i.tif", Image.fromarray(np.ones((8, 8), np.int32)))
    save(tmp_path / "inverted.tif", grey16(1), tiffinfo={262: 0})
    save(tmp_path / "signed.tif", Image.fromarray(np.ones((8, 8), np.uint8)), tiffinfo={339: 2})  # SampleFormat
    for name in ("f.tif", "i.tif", "inverted.tif", "signed.tif"):
        assert "no agreed white" in refused(tmp_path / name)


# ---- numbers of a network, and files again


SEVEN = torch.full((3, 66, 70), 7, dtype=torch.uint8)


def rgb(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-3.0, -1, -1 + 1.4 / 255, 0.999, 1, 7, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 255, 255]


def test_to_float_maps_0_to_255_onto_minus_1_to_1():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(to_uint8(x), levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_tensors_own_pixels_row_by_row(channels):
    tensor = torch.randint(0, 256, (channels, 5, 9), dtype=torch.uint8)
    image = to_picture(tensor)
    assert image.size == (9, 5)
    assert np.array_equal(rgb(image), tensor.expand(3, 5, 9).permute(1, 2, 0).numpy())


def test_a_saved_picture_is_one_png_file_whatever_its_name(tmp_path):
    path = tmp_path / "new folder" / "grid.picture"
    save_picture(to_picture(SEVEN), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert (rgb(image) == 7).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(to_picture(SEVEN), tmp_path / "file" / "grid.png")
