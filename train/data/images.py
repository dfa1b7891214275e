"""A single image: read from a file, converted for a network and back, and written to a file.

`B` images in a batch, `C` channels, `H W` pixels: uint8, 0 to 255, in memory, and float32, -1 to 1, in a network.
"""

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from train.base.errors import UserError, one_line
from train.base.files import replacing
from train.base.units import GiB
from train.config.sections import DataConfig
from train.data.metadata import without_metadata

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # recognised by content; PPM is what Pillow calls PGM
SUFFIXES = (
    ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
MOST_BYTES = GiB  # of a file
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without one, it would print beside our sentence
Image.MAX_IMAGE_PIXELS = 2**28  # more are taken for an attack; a telephone takes pictures of 2 * 10^8
LONG = 64
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
BLACK_IS_ZERO, SIGNED = 1, 2  # values of the second and the third
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes a picture of each orientation of EXIF upright."""


def to_float(pixels: Tensor) -> Tensor:
    """Pixels 0..255 to [-1, 1] in float32."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to pixels 0..255, clamped and rounded (truncation would darken by half a level)."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) with 1 or 3 channels to a Pillow image."""
    array = pixels.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, completely or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def read_image(path: Path, config: DataConfig) -> Tensor:
    """An image file as uint8 (C, H, W), of the size and channels of the config; UserError where it cannot be read.

    Of an animation, the first frame is read. Any aspect ratio is stretched to a square: both axes of a spectrogram
    are physical, so nothing is cropped. Photographs are rotated as their EXIF data say.
    """
    try:
        return _read(path, config)
    except UnidentifiedImageError:
        reason = f"not an image of a known format ({', '.join(FORMATS)})"
    except Exception as error:  # Pillow's decoders document no common exception for what a file may hold
        reason = f"cannot be read ({one_line(str(error))[:200] or type(error).__name__})"
    raise UserError(f"{path}: {reason}")


def _read(path: Path, config: DataConfig) -> Tensor:
    if not path.is_file():  # to open a named pipe would block for ever
        raise OSError("not a file")
    if path.stat().st_size > MOST_BYTES:
        raise OSError(f"larger than {MOST_BYTES // GiB} GiB")
    content, orientation = without_metadata(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is odd and does no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            flat = _in_mode("L" if config.channels == 1 else "RGB", _opaque_8_bit(image))
    if orientation in TURNS:
        flat = flat.transpose(TURNS[orientation])
    # Pillow antialiases when it shrinks an image (torch's `interpolate` does so only on request). Bicubic is
    # sharper than a box filter and rings less than Lanczos beside a spectrogram's bright lines. Sides of more than
    # 64 times the resolution go through a box filter first: the table of bicubic weights would take gigabytes.
    side = config.resolution
    resized = flat.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=LONG)
    pixels = torch.from_numpy(np.array(resized))  # H W C, or H W of a grey image
    return pixels[None] if config.channels == 1 else pixels.permute(2, 0, 1)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    """Converted only where that changes something: of a large picture, a copy takes a GiB."""
    return image if image.mode == mode else image.convert(mode)


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, whatever mode Pillow opened it in; ValueError where its white level is unknown.

    Transparent pixels become black: in a spectrogram black means no energy, and the colour of a fully transparent
    pixel depends on the program that saved it. Where all are transparent, it is a mistake of that program, and they
    are taken as opaque. 16-bit grey is divided by 65535 / 255 = 257; Pillow would clip at 255.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):  # Pillow takes -1 for the largest value
        raise ValueError("its levels are signed, with no agreed white; save it with 8 or 16 unsigned bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow opens 16-bit PGM (and PNG, before Pillow 11) as 32-bit mode I, but in a TIFF that mode may have any
        # range; and it opens 12-bit and white-is-zero TIFFs as if they were plain 16-bit ones.
        plain = (tags.get(BITS_PER_SAMPLE), tags.get(PHOTOMETRIC)) == ((16,), BLACK_IS_ZERO) and image.mode != "I"
        if image.format == "TIFF" and not plain:
            raise ValueError("its grey levels have no agreed white; save it with 8 or 16 unsigned bits")
        levels = np.asarray(image)
        clear = levels == image.info.get("transparency", -1)
        return Image.fromarray(np.rint(np.where(clear & ~clear.all(), 0, levels) / 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3] == (0, 0):
            return rgba.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return _in_mode("L" if image.mode in ("1", "L") else "RGB", image)
