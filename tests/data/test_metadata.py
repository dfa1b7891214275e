"""Metadata of any kind, wrong or right, leave an image's pixels as they are; only its orientation turns them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from train.config.sections import DataConfig
from train.data.images import TURNS, read_image
from train.data.metadata import without_metadata

FORMATS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {}}
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def encoded(image: Image.Image, form: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **FORMATS[form], **more)
    return buffer.getvalue()


def read(content: bytes, path) -> np.ndarray:
    path.write_bytes(content)
    return read_image(path, DataConfig(resolution=16)).permute(1, 2, 0).numpy()


def tag(number: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HHI", number, kind, count) + value.ljust(4, b"\0")


def exif(*tags: bytes, order: str = "<") -> bytes:
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + b"".join(tags) + bytes(4)


def turned(kind: int = 3, value: int = 6, order: str = "<") -> bytes:
    return tag(0x0112, kind, 1, struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], value), order)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF = {
    "a fraction for a text": exif(tag(0x010F, 5, 1, b"\x00\x01"), turned()),
    "a negative width": exif(tag(0x0100, 9, 1, b"\xff\xff\xff\xff"), turned()),
    "a place outside": exif(tag(0x8769, 4, 1, b"\xff\xff\xff\x7f"), turned()),
    "an unknown type": exif(tag(0x0132, 77, 3, b"abc"), turned()),
    "an endless text": exif(tag(0x0131, 2, 2**31, b""), turned()),
    "a directory in itself": exif(tag(0x8769, 4, 1, b"\x08"), turned()),
    "an orientation of a byte": exif(turned(kind=1)),
    "an orientation of four bytes": exif(turned(kind=4)),
    "big endian": exif(turned(order=">"), order=">"),
    "its name twice": b"Exif\0\0" + exif(turned()),
}
UNREADABLE = {
    "nothing": b"", "no header": b"\xff" * 30, "cut short": exif(turned())[:14], "a header only": b"II*\0",
    "a directory outside": b"II*\0\xff\xff\xff\x7f", "no such orientation": exif(turned(value=9)),
    "upright": exif(turned(value=1)), "an orientation of text": exif(tag(0x0112, 2, 2, b"6")),
}  # fmt: skip


def with_exif(form: str, content: bytes) -> bytes:
    """The noise with this EXIF, put in by hand: Pillow writes none that is wrong."""
    plain = encoded(Image.fromarray(NOISE), form)
    if form == "PNG":
        body = b"eXIf" + content
        chunk = struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        return plain[:33] + chunk + plain[33:]
    if form == "JPEG":
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content + plain[2:]
    chunk = b"EXIF" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    extended = b"VP8X" + struct.pack("<IBBBB", 10, 8, 0, 0, 0) + struct.pack("<HBHB", 15, 0, 15, 0)
    body = b"WEBP" + extended + plain[12:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_of_any_kind_turns_the_pixels_and_no_more(tmp_path, form):
    plain = read(encoded(Image.fromarray(NOISE), form), tmp_path / "a")
    for content in EXIF.values():
        assert (read(with_exif(form, content), tmp_path / "a") == np.rot90(plain, -1)).all()
    for content in UNREADABLE.values():
        assert (read(with_exif(form, content), tmp_path / "a") == plain).all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", TURNS)
def test_all_orientations_are_those_that_pillow_knows(tmp_path, form, value):
    """As EXIF and as XMP."""
    given = Image.Exif()
    given[0x0112] = value
    plain, image = read(encoded(Image.fromarray(NOISE), form), tmp_path / "a"), Image.fromarray(NOISE)
    xmp = XMP.replace(b"6", b"%d" % value)
    expected = np.asarray(Image.fromarray(plain).transpose(TURNS[value]))
    found = [encoded(image, form, exif=given)]
    if form in ("JPEG", "WEBP"):
        found.append(encoded(image, form, xmp=xmp))
    elif form == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
        found.append(encoded(image, form, pnginfo=texts))
        texts, digits = PngImagePlugin.PngInfo(), exif(turned(value=value)).hex()
        texts.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n", zip=True)
        found.append(encoded(image, form, pnginfo=texts))
    for content in found:
        assert (read(content, tmp_path / "a") == expected).all()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


LARGE = zlib.compress(bytes(3 << 20))
IN_PNG = {
    "a long text": chunk(b"zTXt", b"log\0\0" + LARGE),
    "a large profile": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "a profile of another method": chunk(b"iCCP", b"icc\0\1"),
    "an empty profile": chunk(b"iCCP", b""),
    "a short gamma": chunk(b"gAMA", b"\0"),
    "short colours": chunk(b"cHRM", b"\0"),
    "a short resolution": chunk(b"pHYs", b"\0"),
    "a wrong checksum": chunk(b"tEXt", b"a\0b", crc=7),
    "an animation without frames": chunk(b"acTL", bytes(8)),
    "an animation of too many": chunk(b"acTL", b"\xff" * 8),
    "a frame of its own": chunk(b"fcTL", b"\xff" * 26),
    "many texts": chunk(b"tEXt", b"a\0" + bytes(1 << 20)) * 65,
    "something private": chunk(b"prVt", b"x"),
}
IN_JPEG = {
    "another picture": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "a short JFIF": segment(0xE0, b"JFIF\0"),
    "a short Adobe": segment(0xEE, b"Adobe"),
    "part of a profile": segment(0xE2, b"ICC_PROFILE\0\x02\x09"),
    "a photograph's data": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff\xff"),
    "an empty comment": segment(0xFE, b""),
    "many": segment(0xE5, bytes(65000)) * 100,
    "fill": b"\xff\xff\xff" + segment(0xE7, b""),
}


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_what_programs_write_beside_pixels_does_not_disturb(tmp_path, form):
    plain, cases = encoded(Image.fromarray(NOISE), form), IN_PNG if form == "PNG" else IN_JPEG
    at, expected = 33 if form == "PNG" else 2, read(plain, tmp_path / "a")
    for name, more in cases.items():
        assert (read(plain[:at] + more + plain[at:], tmp_path / "a") == expected).all(), name


def test_a_text_cut_off_behind_whole_pixels_does_not_disturb(tmp_path):
    plain, text = encoded(Image.fromarray(NOISE), "PNG"), chunk(b"tEXt", b"a\0b")
    for length in range(len(text)):
        assert (read(plain[:-12] + text[:length], tmp_path / "a") == NOISE).all()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiffs_other_tags_and_pages_do_not_disturb(tmp_path, compression, big):
    odd = {
        270: "long " * 9000, 271: "maker", 282: 72.0, 283: 72.0, 296: 2, 305: "program", 700: b"\xff" * 99,
        33723: bytes(300_000), 34377: bytes(9), 34675: bytes(99),
    }  # fmt: skip
    pages = [Image.fromarray(NOISE[::-1].copy())] * 2
    content = encoded(Image.fromarray(NOISE), "TIFF", tiffinfo=odd, compression=compression, save_all=True,
                      append_images=pages, big_tiff=big)  # fmt: skip
    assert (read(content, tmp_path / "a") == NOISE).all()
    bare, orientation = without_metadata(content)
    assert (len(bare), orientation) == (len(content), 1)
    with Image.open(io.BytesIO(bare)) as image:
        assert image.n_frames == 1
        assert not {270, 271, 700, 33723, 34377} & set(image.tag_v2)


def test_colours_that_metadata_decide_stay_as_they_are(tmp_path):
    """A CMYK picture of Adobe's, whose values are inverted, and one in RGB without any conversion."""
    for mode, options in (("CMYK", {}), ("RGB", {"keep_rgb": True})):
        image = Image.fromarray(NOISE).convert(mode)
        content = encoded(image, "JPEG", **options)
        with Image.open(io.BytesIO(content)) as theirs:
            expected = np.asarray(theirs.convert("RGB"))
        assert (read(content, tmp_path / "a") == expected).all()
