"""Bounded, seeded fuzz of image files and of data folders: `python -m tests.data.fuzz [MINUTES [SEED]]`.

Whatever comes in, it is read or answered with one sentence. Metadata of any kind moreover leave the pixels as they
are, but for one of eight orientations, and a folder that is read has a split whose recordings stay whole.
"""

import io
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from train.base.errors import UserError
from train.config.sections import DataConfig
from train.data.dataset import load_images
from train.data.images import TURNS, read_image
from train.data.split import SIDES, adapt_split, load_split, make_split, recording_of, save_split

SIDE, CHANNELS = 16, 3
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
FEW_PIXELS = 2**22  # in place of what read_image allows: a header that lies costs as much time as a picture so large
LONGEST = 20.0  # seconds for one file, on a machine that is busy


def encoded(mode: str, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else (
        Image.fromarray(NOISE).convert("RGB" if mode in ("P", "CMYK") else "RGBA").convert(mode)
    )  # fmt: skip
    image.save(buffer, form, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    """A file of every format and mode, with some of their options."""

    def several() -> dict:
        return {"save_all": True, "append_images": [Image.fromarray(NOISE[::-1, :, :3].copy()) for _ in range(2)]}

    return [
        *(encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        encoded("P", "PNG", transparency=3), encoded("L", "PNG", transparency=7, dpi=(72, 72)),
        encoded("RGB", "PNG", **several()),
        *(encoded(mode, "JPEG") for mode in ("L", "RGB", "CMYK")), encoded("RGB", "JPEG", progressive=True),
        encoded("RGB", "JPEG", icc_profile=bytes(3000), comment=b"made", dpi=(72, 72)),
        encoded("RGB", "MPO", **several()),
        encoded("RGB", "WEBP"), encoded("RGBA", "WEBP", lossless=True, xmp=b"<x/>", icc_profile=bytes(99)),
        encoded("RGB", "WEBP", **several()),
        encoded("P", "GIF"), encoded("P", "GIF", **several(), comment=b"made"),
        *(encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(encoded(mode, "PPM") for mode in ("1", "L", "RGB", "I;16")),
        *(encoded("RGB", "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        encoded("1", "TIFF", compression="group4"), encoded("I;16", "TIFF"), encoded("CMYK", "TIFF"),
        encoded("RGBA", "TIFF", big_tiff=True), encoded("P", "TIFF", **several()),
    ]  # fmt: skip


# ---- files


NUMBERS = (0, 1, 2, 7, 8, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"eXIf", b"iCCP", b"zTXt", b"Exif\0\0", b"II*\0", b"MM\0*", b"II+\0",
    b"\xff\xe1", b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc2", b"VP8X", b"EXIF", b"ANMF", b"JFIF\0", b"Adobe",
    b"\0" * 40, b"\xff" * 40, b"P7\n", b"GIF89a", b"BM",
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few changes, most of them in the first bytes, where headers and metadata are."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = min(rng.randrange(len(content) + 1), rng.choice((40, 200, len(content))))
        length = rng.choice((0, 1, 2, 4, 40))
        content[at : at + length] = rng.choice((
            b"", rng.randbytes(length), rng.choice(WORDS), bytes(content[at : at + length]) * 2,
            rng.choice(NUMBERS).to_bytes(4, rng.choice(("big", "little"))),
            (rng.choice(NUMBERS) & 0xFFFF).to_bytes(2, rng.choice(("big", "little"))),
        ))  # fmt: skip
    if rng.random() < 0.1:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def repaired(content: bytes) -> bytes:
    """A PNG with checksums that fit, so that what is in its chunks is looked at."""
    fixed, at = bytearray(content), 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end])) if end + 4 <= len(content) else b""
        at = end + 4
    return bytes(fixed)


def looked_at(path: Path, content: bytes) -> np.ndarray | None:
    """The pixels; None where the file is refused, in one line that names it. Anything else is an error."""
    path.write_bytes(content)
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = read_image(path, DataConfig(resolution=SIDE, channels=CHANNELS))
    except UserError as error:
        said = str(error)
        assert said.startswith(f"{path}: "), said
        assert "\n" not in said
        assert len(said) < len(str(path)) + 300, said
        pixels = None
    assert time.monotonic() - began < LONGEST
    assert pixels is None or (pixels.shape == (CHANNELS, SIDE, SIDE) and pixels.dtype == torch.uint8)
    return None if pixels is None else pixels.permute(1, 2, 0).numpy()


# ---- metadata


def metadata(rng: random.Random) -> bytes:
    """EXIF of random tags, XMP, or anything."""
    order = rng.choice("<>")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", rng.choice((8, 8, 8, 9, 2**31)))
    tags = b""
    number = rng.randrange(12)
    for _ in range(number):
        tag = rng.choice((0x010F, 0x0110, 0x0112, 0x011A, 0x0100, 0x0132, 0x8769, 0x8825, rng.randrange(65536)))
        value = rng.choice((rng.randbytes(4), struct.pack(f"{order}HH", rng.randrange(10), 0), bytes(4)))
        tags += struct.pack(f"{order}HHI", tag, rng.randrange(20), rng.choice((1, 1, 2, 5, 2**31))) + value
    count = struct.pack(f"{order}H", rng.choice((number, number, rng.randrange(65536))))
    exif = header + count + tags + rng.randbytes(rng.randrange(30))
    xmp = b'<x tiff:Orientation="%d"/>' % rng.randrange(10)
    return rng.choice((exif, exif, b"Exif\0\0" + exif, xmp, rng.randbytes(rng.randrange(60))))


def with_metadata(content: bytes, found: bytes, rng: random.Random) -> bytes:
    """A PNG, JPEG or WebP with it, in one of the places where programs put such things."""
    if content.startswith(b"\x89PNG"):
        kind = rng.choice((b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"caBX"))
        checksum = struct.pack(">I", rng.choice((0, zlib.crc32(kind + found))))
        return content[:33] + struct.pack(">I", len(found)) + kind + found + checksum + content[33:]
    if content.startswith(b"\xff\xd8"):
        marker = rng.choice((0xE1, 0xE1, 0xE2, 0xE5, 0xED, 0xEF, 0xFE))
        name = rng.choice((b"", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0", b"ICC_PROFILE\0"))
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(name + found) + 2) + name + found
        return content[:2] + segment + content[2:]
    kind = rng.choice((b"EXIF", b"XMP ", b"ICCP", b"abcd"))
    return content + kind + struct.pack("<I", len(found)) + found + bytes(len(found) % 2)


def turns_of(pixels: np.ndarray) -> Iterator[np.ndarray]:
    yield pixels
    for method in TURNS.values():
        yield np.asarray(Image.fromarray(pixels).transpose(method))


# ---- folders


PIECES = (
    "ID1", "ID2", "id1", "10", "a b", "é", "e\u0301", "__MACOSX", "@eaDir", "notes", "grid.png", "x.png", ".hidden",
    "Thumbs.db", "a\nb", "\udcff", "走る", "$RECYCLE.BIN", "-x", "~", "$HOME",
)  # fmt: skip
NAMES = (*(f"r{recording}_{n}.png" for recording in range(4) for n in range(3)), "r1_é.png", "r1_e\u0301.png", "r2.PNG",
         "r3_x.jpg", "r0.heic", "r1.npy", "none", "r.png", "Thumbs.db", ".r1.png", "r\n1.png")  # fmt: skip


def fill(folder: Path, rng: random.Random, depth: int = 0) -> None:
    """Users, images, litter, links and folders at random; in half of the cases mostly in order."""
    tidy = rng.random() < 0.7
    folder.mkdir(parents=True, exist_ok=True)
    for name in rng.sample(PIECES[:3] if tidy and not depth else PIECES, rng.randrange(1, 4)) if depth < 2 else ():
        if not depth or rng.random() < 0.15:
            fill(folder / name, rng, depth + 1)
    for name in rng.sample(NAMES[:14] if tidy else NAMES, rng.randrange(1, 12)) if depth or rng.random() < 0.2 else ():
        path, kind = folder / name, rng.random()
        if path.exists() or path.is_symlink():
            continue
        if kind < 0.9:
            path.write_bytes(PICTURE if rng.random() < 0.97 else rng.choice((b"", PICTURE[:50], b"text")))
        elif kind < 0.95:
            path.symlink_to(rng.choice(("nowhere", name, ".", "..")))
        else:
            path.mkdir()


PICTURE = encoded("RGB", "PNG")


def read_folder(folder: Path, before: Path | None) -> Path | None:
    """Read a folder, split it and save the split, also as an addition to the one `before`; None where it is refused."""
    config = DataConfig(str(folder), resolution=SIDE, recording_pattern=r"^r\d?")
    try:
        data = load_images(config)
        split = adapt_split([before], data, config) if before else make_split(data, config)
    except UserError as error:
        if "\n" in str(error):
            raise
        return None
    sides = {data.paths[row]: side for side in SIDES for row in getattr(split, side).tolist()}
    assert sorted(sides) == sorted(data.paths)
    for path, side in sides.items():
        for other, its in sides.items():
            same = (path.partition("/")[0], recording_of(path, config.pattern)) == (
                other.partition("/")[0], recording_of(other, config.pattern)
            )  # fmt: skip
            assert not same or (side == "held_out") == (its == "held_out"), (path, other)
    saved = folder.with_suffix(".json")
    save_split(saved, split, data, config)
    again = load_split(saved, data, config)
    assert all(torch.equal(getattr(again, side), getattr(split, side)) for side in SIDES)
    return saved


# ---- both


def fuzz(place: Path, rounds: Iterator[int], seed: int) -> dict[str, int]:
    """In each round ten files, five metadata and a folder; how often what was read, and how often refused."""
    files, whole = seeds(), [encoded("RGB", "PNG"), encoded("RGB", "JPEG"), encoded("RGB", "WEBP", xmp=b"<x/>")]
    plain = [looked_at(place / "plain", content) for content in whole]
    counts = dict.fromkeys(("files read", "files refused", "metadata", "folders read", "folders refused"), 0)
    before = None
    for number in rounds:
        rng = random.Random(f"{seed} {number}")
        for _ in range(10):
            content = mutated(rng.choice(files), rng)
            content = repaired(content) if rng.random() < 0.7 else content
            counts["files read" if looked_at(place / "file", content) is not None else "files refused"] += 1
        for _ in range(5):
            which = rng.randrange(len(whole))
            pixels = looked_at(place / "file", with_metadata(whole[which], metadata(rng), rng))
            assert pixels is not None, number
            assert any((pixels == turned).all() for turned in turns_of(plain[which])), number
            counts["metadata"] += 1
        folder = place / f"folder{number}"
        fill(folder, rng)
        saved = read_folder(folder, before if rng.random() < 0.5 else None)
        counts["folders read" if saved else "folders refused"] += 1
        before = saved or before
    return counts


def main() -> None:
    minutes, seed = float(sys.argv[1] if len(sys.argv) > 1 else 1), int(sys.argv[2] if len(sys.argv) > 2 else 0)
    end = time.monotonic() + 60 * minutes
    Image.MAX_IMAGE_PIXELS = FEW_PIXELS

    def rounds() -> Iterator[int]:
        number = 0
        while time.monotonic() < end:
            yield number
            number += 1

    with tempfile.TemporaryDirectory() as place:
        with redirect_stderr(io.StringIO()):  # the lines about what is left out
            counts = fuzz(Path(place), rounds(), seed)
        print(counts)


if __name__ == "__main__":
    main()
