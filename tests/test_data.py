"""Laws of reading folders of images. Every picture is made here, with known pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from train.base.errors import UserError
from train.data.dataset import DataConfig, draw_flips, load_images, natural_key, read_image, scan, to_uint8


def grey(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L", size, value)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or grey(100)).save(path, **options)
    return path


def refused(call, *args) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- order and folders


def test_names_sort_as_a_person_counts():
    names = ["ID10", "ID2", "id3", "ID1", "ID01", "ID", "10", "9", "a10b2", "a10b1", "张2", "張1"]
    expected = ["9", "10", "a10b1", "a10b2", "ID", "ID01", "ID1", "ID2", "id3", "ID10", "张2", "張1"]
    assert sorted(names, key=natural_key) == expected


def test_users_are_folders_and_files_are_images_both_in_natural_order(tmp_path):
    for name in ("ID10/b10.PNG", "ID10/b9.jpg", "ID2/x.tif", "a b/1.png", "走る 🚶‍♀️/1.gif", ".x/1.png"):
        save(tmp_path / name)
    (tmp_path / "ID10" / "notes.txt").write_text("no image")
    (tmp_path / "ID10" / "._b9.jpg").write_text("hidden")
    save(tmp_path / "overview.png")
    names, files = scan(tmp_path)
    assert names == ["a b", "ID2", "ID10", "走る 🚶‍♀️"]
    assert [path.name for own in files for path in own] == ["1.png", "x.tif", "b9.jpg", "b10.PNG", "1.gif"]


def test_a_linked_user_is_a_user(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ID1").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert scan(tmp_path / "data")[0] == ["ID1"]


def test_a_folder_without_users_is_refused_and_told_the_layout(tmp_path):
    assert "no such folder" in refused(scan, tmp_path / "none")
    assert "no such folder" in refused(scan, "nul\0")
    save(tmp_path / "1.png")
    assert "there is no user in it; put each user's images into a folder" in refused(scan, tmp_path)


def test_a_user_without_images_is_refused_by_name(tmp_path):
    save(tmp_path / "ID1" / "1.png")
    save(tmp_path / "ID2" / "session" / "1.png")
    (tmp_path / "ID2" / "a.txt").write_text("")
    assert "no image directly in the folder of ID2" in refused(scan, tmp_path)


def test_users_that_differ_in_case_only_are_refused(tmp_path):
    for name in ("Anna", "anna"):
        save(tmp_path / name / "1.png")
    if len(list(tmp_path.iterdir())) == 2:  # on Windows and macOS they are one folder, and fine
        assert "users 'Anna' and 'anna' differ in case only" in refused(scan, tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\udcff"])
def test_a_name_that_no_text_file_can_hold_is_refused(tmp_path, name):
    save(tmp_path / name / "1.png")
    assert f"rename {name!r}" in refused(scan, tmp_path)


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
    "grey with key.png": (grey(77), {"transparency": 77}, (0, 0, 0)),
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
    "colour with key.png": (Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}, (0, 0, 0)),
    "palette.png": (palette(0, 0, 0, 10, 20, 30), {}, (10, 20, 30)),
    "palette.gif": (palette(0, 0, 0, 10, 20, 30), {}, (10, 20, 30)),
    "palette with key.png": (palette(0, 0, 0, 10, 20, 30), {"transparency": 1}, (0, 0, 0)),
    "palette with alpha.png": (palette(0, 0, 0, 10, 20, 30), {"transparency": b"\xff\x33"}, (2, 4, 6)),
    "transparent.png": (rgba((255, 255, 255, 0)), {}, (0, 0, 0)),
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
    pixels = read_image(path, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, 3)
    assert (pixels == colour).all()


@pytest.mark.parametrize("name", CASES)
def test_one_channel_is_the_luma_of_three(tmp_path, name):
    image, options, (red, green, blue) = CASES[name]
    pixels = read_image(save(tmp_path / name, image, **options), 8, 1)
    assert pixels.shape == (8, 8, 1)
    assert np.abs(pixels - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.51


def test_all_levels_of_16_bits_round_to_the_nearest_of_8(tmp_path):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read_image(save(tmp_path / "a.png", Image.fromarray(levels)), 256, 1)[..., 0]
    assert np.abs(pixels * 257.0 - levels).max() <= 128


def test_pgm_of_any_white_is_scaled_to_its_white(tmp_path):
    for white, value in ((15, 15), (1000, 1000), (255, 255)):
        (tmp_path / "a.pgm").write_text(f"P2 2 2 {white} {' '.join([str(value)] * 4)}")
        assert (read_image(tmp_path / "a.pgm", 2, 1) == 255).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [palette(0, 0, 0, 10, 20, 30), palette(0, 0, 0, 200, 200, 200)]
    save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif", 8, 3) == (10, 20, 30)).all()


def test_a_photograph_is_turned_as_its_exif_asks(tmp_path):
    corner = np.zeros((8, 8), np.uint8)
    corner[:4, :4] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name in ("a.png", "a.tif"):
        pixels = read_image(save(tmp_path / name, Image.fromarray(corner), exif=exif), 8, 1)
        assert (pixels[..., 0] == corner[:, ::-1]).all()  # top right


def test_a_checkerboard_shrinks_to_grey_without_aliasing(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = read_image(save(tmp_path / "a.png", Image.fromarray(board)), 32, 1).astype(int)
    assert np.abs(pixels - 127.5).max() <= 4


def test_an_oblong_image_is_stretched_and_keeps_its_edges(tmp_path):
    bars = np.zeros((16, 64), np.uint8)
    bars[:, :16], bars[:, -16:] = 255, 128
    row = read_image(save(tmp_path / "a.png", Image.fromarray(bars)), 32, 1)[16, :, 0]
    assert (row[0], row[16], row[-1]) == (255, 0, 128)


def test_an_image_of_the_right_size_is_not_changed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert (read_image(save(tmp_path / "a.png", Image.fromarray(noise)), 16, 3) == noise).all()


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
    assert name in refused(read_image, tmp_path / name, 8, 3)


def test_what_is_no_file_is_refused_by_name(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for name in ("folder.png", "link.png", "none.png"):
        assert f"{name}: cannot be read (not a file)" in refused(read_image, tmp_path / name, 8, 3)


@pytest.mark.parametrize("limit", [500, 1000])  # Pillow warns above its limit, raises above twice its limit
def test_a_decompression_bomb_is_refused_not_decoded(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "bomb.png", grey(0, (32, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "bomb" in refused(read_image, path, 8, 3)


def test_pixels_without_an_agreed_white_are_refused(tmp_path):
    save(tmp_path / "f.tif", Image.fromarray(np.ones((8, 8), np.float32)))
    save(tmp_path / "i.tif", Image.fromarray(np.ones((8, 8), np.int32)))
    save(tmp_path / "inverted.tif", grey16(1), tiffinfo={262: 0})
    for name in ("f.tif", "i.tif", "inverted.tif"):
        assert "no agreed white" in refused(read_image, tmp_path / name, 8, 3)


# ---- the data set


@pytest.fixture
def folder(tmp_path):
    """Users ID2 and ID10 with 20 images each; image n of a user is grey 10 * user + n."""
    for user in (2, 10):
        for n in range(20):
            save(tmp_path / f"ID{user}" / f"r{n // 4}_{n}.png", grey(10 * user + n))
    return tmp_path


def test_rows_are_users_in_natural_order_with_their_files_in_natural_order(folder):
    data = load_images(DataConfig(str(folder), resolution=8, channels=1))
    assert data.user_names == ["ID2", "ID10"]
    assert data.user_index.tolist() == [0] * 20 + [1] * 20
    assert data.paths[:3] == ["ID2/r0_0.png", "ID2/r0_1.png", "ID2/r0_2.png"]
    assert data.images.shape == (40, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images[:, 0, 0, 0].tolist() == [*range(20, 40), *range(100, 120)]
    assert len(data) == 40


def test_unreadable_files_are_named_counted_and_left_out(folder, capsys):
    (folder / "ID2" / "r0_1.png").write_bytes(b"")
    (folder / "ID10" / "x.png").mkdir()
    data = load_images(DataConfig(str(folder), resolution=8))
    assert len(data) == 39
    assert "ID2/r0_1.png" not in data.paths
    assert data.images[1].eq(22).all()  # rows move up
    message = capsys.readouterr().err
    assert "left out 2 of 41 images" in message
    assert str(folder / "ID2" / "r0_1.png") in message
    assert str(folder / "ID10" / "x.png") in message


def test_five_percent_unreadable_is_allowed_and_more_is_refused(folder):
    for n in (0, 1):
        (folder / "ID2" / f"r0_{n}.png").write_bytes(b"")
    load_images(DataConfig(str(folder), resolution=8))
    (folder / "ID2" / "r0_2.png").write_bytes(b"")
    message = refused(load_images, DataConfig(str(folder), resolution=8))
    assert "3 of 40 images cannot be read, more than 5%" in message
    assert str(folder / "ID2" / "r0_2.png") in message


def test_a_user_of_whom_nothing_can_be_read_is_refused_by_name(folder):
    (folder / "ID3").mkdir()
    (folder / "ID3" / "a.png").write_bytes(b"")
    assert "no image of ID3 can be read" in refused(load_images, DataConfig(str(folder), resolution=8))


def test_to_uint8_undoes_batch_for_all_256_levels(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "ID1" / "a.png", Image.fromarray(levels))
    data = load_images(DataConfig(str(tmp_path), resolution=16, channels=1))
    x = data.batch(torch.tensor([0]))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), data.images)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-3.0, -1, -1 + 1.4 / 255, 0.999, 1, 7, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 255, 255]


def test_only_the_images_that_the_masks_name_are_flipped(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    save(tmp_path / "ID1" / "a.png", Image.fromarray(noise))
    data = load_images(DataConfig(str(tmp_path), resolution=8))
    rows, yes_no = torch.tensor([0, 0]), torch.tensor([True, False])
    plain = data.batch(rows)
    mirrored, upended = data.batch(rows, mirror=yes_no), data.batch(rows, upend=yes_no)
    assert torch.equal(mirrored, torch.stack([plain[0].flip(-1), plain[1]]))
    assert torch.equal(upended, torch.stack([plain[0].flip(-2), plain[1]]))


def test_nothing_is_flipped_unless_asked_for():
    for mirror in (False, True):
        for upend in (False, True):
            config = DataConfig(horizontal_flip=mirror, vertical_flip=upend)
            mirrored, upended = draw_flips(1000, config, torch.Generator().manual_seed(0)).tolist()
            assert 400 * mirror <= sum(mirrored) <= 600 * mirror
            assert 400 * upend <= sum(upended) <= 600 * upend


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"resolution": 4}, "resolution must be at least 8"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"validation_fraction": 0.0}, "validation_fraction must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1"),
        ({"recording_pattern": "("}, "recording_pattern '(' is no regular expression"),
    ],
)
def test_settings_without_meaning_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        DataConfig(**settings)
