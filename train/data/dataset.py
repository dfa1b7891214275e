"""A folder per user, with that user's images, decoded once into memory.

    data/ID1/walk1_000.png      the folder's name is the user's name, of any form
    data/ID1/walk1_001.png
    data/ID2/...

`N` images, `B` of them in a batch, `C` channels, `H W` pixels. In memory a pixel is uint8, 0 to 255 (31
users x 100 images x 3x128x128: 152 MB); in a batch it is float32, -1 to 1.
"""

import math
import os
import re
import struct
import sys
import unicodedata
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from train.base.errors import CONTROL, UserError
from train.base.progress import progress

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # told by content; Pillow calls PGM so
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp")
BITS_PER_SAMPLE, PHOTOMETRIC, BLACK_IS_ZERO = 258, 262, 1  # TIFF tags, and a value of the second
MAX_RESOLUTION = 8192  # pixels: more is a slip of the finger
BUILT_IN, BUILT_IN_RECORDING = "data/simulated", r"^(rec\d+)_"  # of `make data`
MAX_UNREADABLE = 0.05  # of the files; with more left out, this is not the data set that was meant

# What Pillow's decoders raise on damaged files, found by damaging a million. They promise no one exception.
DECODER_ERRORS = (
    OSError,  # with UnidentifiedImageError, truncated files, no permission
    SyntaxError,  # the structure of PNG and TIFF
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, the size at which models see them, and how they are split (train/data/split.py)."""

    dir: str = BUILT_IN
    resolution: int = 128  # pixels, height and width
    channels: Literal[1, 3] = 3
    recording_pattern: str | None = None  # regex on a file's name: group 1, or the match, is its recording; see pattern
    validation_fraction: float = 0.1  # of each user's recordings
    horizontal_flip: bool = False  # augmentation: on a spectrogram this one reverses time
    vertical_flip: bool = False  # ... and this one the sign of Doppler
    seed: int = 0  # of the split

    def __post_init__(self) -> None:
        if not self.dir:
            raise ValueError("dir is empty; give the folder that holds a folder of images per user")
        if not 8 <= self.resolution <= MAX_RESOLUTION:
            raise ValueError(f"resolution must be at least 8 and at most {MAX_RESOLUTION}, not {self.resolution}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, not {self.validation_fraction}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # of what re will one day read otherwise
                re.compile(self.recording_pattern or "")
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            message = f"recording_pattern {self.recording_pattern!r} is no regular expression: {error}"
            raise ValueError(message) from None

    @property
    def pattern(self) -> str | None:
        """The recording_pattern. Without one each file is a recording, but those of the built-in data set are known."""
        built_in = Path(os.path.abspath(self.dir)).match(BUILT_IN)  # the end of the path: in whatever folder
        return self.recording_pattern or (BUILT_IN_RECORDING if built_in else None)


# ---- folders


def natural_key(name: str) -> tuple:
    """Sort key for natural order: `ID2` before `ID10`; case decides only between otherwise equal names."""
    parts = re.split("([0-9]+)", name.casefold())  # text and digits in turn, so keys always compare
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def scan(folder: str | Path) -> tuple[list[str], list[list[Path]]]:
    """The users' names in natural order, and for each the image files, in natural order too.

    Hidden entries, files that have no image's suffix and folders inside a user's are ignored. UserError where
    there is no such folder, no user, a user without images, or two users that differ in case only.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; data.dir is what holds a folder of images per user")
    entries = _visible(folder)
    lost = [entry for entry in entries if entry.is_symlink() and not os.path.exists(entry)]
    if lost:  # a user would be missing, and nobody told
        raise UserError(f"{lost[0]}: is a link to nowhere; repair or remove it")
    users = [entry for entry in entries if os.path.isdir(entry)]
    if not users:
        raise UserError(
            f"{folder}: there is no user in it; put each user's images into a folder named after the user, "
            f"as in {folder / 'ID1' / 'image.png'}"
        )
    files = [[entry for entry in _visible(user) if entry.suffix.lower() in SUFFIXES] for user in users]
    for path in [*users, *(path for own in files for path in own)]:
        if CONTROL.search(path.name):
            raise UserError(f"{folder}: rename {path.name!r}; such a name cannot be written into a text file")
    empty = [user.name for user, own in zip(users, files, strict=True) if not own]
    if empty:
        inner = folder / empty[0]
        has_folders = any(os.path.isdir(entry) for entry in _visible(inner))
        instead = f"; if the users are in there, give {inner} as data.dir" if has_folders else ""
        raise UserError(
            f"{folder}: no image directly in the folder of {_some(empty)}; put images there "
            f"({' '.join(SUFFIXES)}) or remove the folder{instead}"
        )
    seen: dict[str, str] = {}
    for user in users:
        same = seen.setdefault(unicodedata.normalize("NFC", user.name).casefold(), user.name)
        if same != user.name:  # their output folders would be one on Windows and macOS
            raise UserError(
                f"{folder}: users {same!r} and {user.name!r} differ in case only, or in how accents are stored; "
                "rename one"
            )
    return [user.name for user in users], files


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, in natural order."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _some(names: list[str]) -> str:
    """At most three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---- one image


def read_image(path: Path, resolution: int, channels: int) -> np.ndarray:
    """One image file as uint8 (resolution, resolution, channels); UserError where that cannot be done.

    The first frame of an animation. Any aspect ratio is stretched to the square: both axes of a spectrogram
    are physical and must be wholly kept, so nothing is cropped. Photographs are turned as EXIF asks.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that Pillow cannot read; the pixels are whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not path.is_file():  # a pipe of that name would wait for ever
                raise OSError("not a file")
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                flat = _opaque_8_bit(image).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image of a known format ({', '.join(FORMATS)})") from None
    except DECODER_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None
    # Pillow widens its filter when it shrinks, which is antialiasing (torch's `interpolate` does so only when
    # told). Bicubic is sharper than a box and rings less than Lanczos beside a spectrogram's bright lines.
    pixels = np.array(flat.resize((resolution, resolution), Image.Resampling.BICUBIC))
    return pixels.reshape(resolution, resolution, channels)


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, whatever mode Pillow opened it in; ValueError where white is not known.

    Transparent pixels become black: on a spectrogram black is "no energy", and what colour lies under full
    transparency is an accident of the program that saved it.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to mode L by 65535 / 257 = 255; Pillow alone would turn all above 255 white.

    Pillow opens 16-bit PGM (and PNG, before Pillow 11) as 32-bit mode I, but in a TIFF that mode may hold any
    range; and it opens 12-bit and white-is-zero TIFFs as if they were plain 16-bit ones.
    """
    if image.format == "TIFF":
        tags = image.tag_v2
        if image.mode == "I" or tags.get(BITS_PER_SAMPLE) != (16,) or tags.get(PHOTOMETRIC) != BLACK_IS_ZERO:
            raise ValueError("its grey levels have no agreed white; save it with 8 or 16 unsigned bits")
    return Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))


# ---- all images


@dataclass(frozen=True, eq=False)
class UserImages:
    """The decoded data set. Row i of `images` belongs to user `user_names[user_index[i]]`."""

    images: Tensor  # uint8 (N, C, H, W)
    user_index: Tensor  # int64 (N,)
    user_names: list[str]  # in natural order; saved with every model
    paths: list[str]  # of each image, relative to the data folder, with `/`

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor, mirror: Tensor | None = None, upend: Tensor | None = None) -> Tensor:
        """Images `indices` (B,) as float32 (B, C, H, W) in [-1, 1].

        Those with `mirror` (B,) True are flipped left to right, those with `upend` (B,) True top to bottom.
        The caller draws the two, so that randomness has one owner.
        """
        x = self.images[indices].float() / 127.5 - 1  # (B, C, H, W)
        for flip, axis in ((mirror, 3), (upend, 2)):
            if flip is not None:
                x = torch.where(flip[:, None, None, None], x.flip(axis), x)
        return x


def load_images(config: DataConfig) -> UserImages:
    """Decode every image under `config.dir`. Files that cannot be read are named, counted and left out.

    UserError when they are more than 5% of all files or all files of a user.
    """
    user_names, files = scan(config.dir)
    todo = [(user, path) for user, own in enumerate(files) for path in own]
    shape = (len(todo), config.channels, config.resolution, config.resolution)
    try:
        images = np.empty(shape, np.uint8)  # (N, C, H, W)
    except MemoryError:
        raise UserError(
            f"{config.dir}: {len(todo)} images at data.resolution {config.resolution} take "
            f"{math.prod(shape) / 2**30:.0f} GiB, more memory than there is; lower data.resolution"
        ) from None
    kept, unreadable = [], []
    for user, path in progress(todo, desc="reading images", unit="", leave=False):
        try:
            pixels = read_image(path, config.resolution, config.channels)  # (H, W, C)
        except UserError as error:
            unreadable.append(str(error))
            continue
        images[len(kept)] = pixels.transpose(2, 0, 1)
        kept.append((user, path.relative_to(config.dir).as_posix()))
    _report_unreadable(config.dir, unreadable, len(todo))
    user_index = [user for user, _ in kept]
    without = [user_names[user] for user in sorted(set(range(len(user_names))) - set(user_index))]
    if without:
        raise UserError(f"{config.dir}: no image of {_some(without)} can be read; repair or remove them")
    paths = [path for _, path in kept]
    return UserImages(torch.from_numpy(images[: len(kept)]), torch.tensor(user_index), user_names, paths)


def _report_unreadable(folder: str, unreadable: list[str], total: int) -> None:
    if len(unreadable) > MAX_UNREADABLE * total:
        raise UserError(
            f"{folder}: {len(unreadable)} of {total} images cannot be read, more than {MAX_UNREADABLE:.0%}; "
            f"repair or remove them: {_some(unreadable)}"
        )
    if unreadable:
        listing = "".join(f"\n  {line}" for line in unreadable)
        print(f"{folder}: left out {len(unreadable)} of {total} images{listing}", file=sys.stderr)


def draw_flips(count: int, config: DataConfig, generator: torch.Generator) -> Tensor:
    """Whether each of `count` images is mirrored and upended, as `batch` takes it: (2, count) bool."""
    asked_for = torch.tensor([[config.horizontal_flip], [config.vertical_flip]])
    return (torch.rand(2, count, generator=generator) < 0.5) & asked_for


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, the inverse of `batch`: clamped and rounded (truncation darkens by half a level)."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
