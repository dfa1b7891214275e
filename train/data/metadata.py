"""The metadata of an image file, which must not decide whether its pixels can be read.

Cameras and programs write EXIF, profiles, texts and thumbnails of any kind and size into images, some of it wrong, and
Pillow gives up a whole picture for a single tag. So it gets the file without them. All that is read of them is which
way up the picture is, where that can be read.
"""

import re
import struct
import zlib
from contextlib import suppress

UPRIGHT, ORIENTATION = 1, 0x0112  # the latter is a tag of EXIF and of TIFF
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # by the type of a tag
# The tags that decide the pixels of a TIFF (TIFF 6.0, with its supplements).
PIXEL_TAGS = {
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
PNG, JPEG, RIFF, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"WEBP"
TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # with the order of its bytes; + is BigTIFF
WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
APPLICATION, COMMENT, SCAN = range(0xE0, 0xF0), 0xFE, 0xDA  # markers of a JPEG
COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}  # beginning and least length of those that decide colours
SMALL, BIG = ("H", 12, "I"), ("Q", 20, "Q")  # a TIFF's number of entries, size of one, and offsets
MOST_TEXT, MOST_TAGS = 1 << 20, 65_535  # bytes of a compressed text, and tags of a TIFF, that are looked at


def without_metadata(content: bytes) -> tuple[bytes, int]:
    """A file with only what decides its pixels, and its orientation as EXIF counts them: 1 (upright) to 8.

    Of a damaged file, what comes after the damage is kept as it is, so that Pillow finds it. Other formats than PNG,
    JPEG, WebP and TIFF are returned as they are.
    """
    if content.startswith(PNG):
        bare, metadata = _png(content)
    elif content.startswith(JPEG):
        bare, metadata = _jpeg(content)
    elif content.startswith(RIFF) and content[8:12] == WEBP:
        bare, metadata = _webp(content)
    elif content[:4] in TIFF:
        bare, metadata = _tiff(content), [content]
    else:
        return content, UPRIGHT
    return bare, next(filter(None, map(orientation_of, metadata)), UPRIGHT)


def orientation_of(metadata: bytes) -> int:
    """1 to 8 as EXIF, a TIFF or XMP says; 0 where it says nothing, or nothing that can be read."""
    while metadata.startswith(b"Exif\0\0"):
        metadata = metadata[6:]
    if metadata[:4] in TIFF:
        order = TIFF[metadata[:4]]
        for entry in _directory(metadata)[1]:
            tag, kind = struct.unpack_from(order + "HH", entry)
            if tag == ORIENTATION and kind in WHOLE_NUMBERS:
                (number,) = struct.unpack_from(order + WHOLE_NUMBERS[kind], entry, 8 if len(entry) == 12 else 12)
                return number if 1 <= number <= 8 else 0
        return 0
    match = re.search(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""", metadata)
    return int(match[1]) if match else 0


# ---- formats: each returns the file without metadata, and those that may have an orientation


def _png(content: bytes) -> tuple[bytes, list[bytes]]:
    kept, metadata, at = [PNG], [], len(PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length  # with its checksum
        if not kind.isalpha():
            break
        if kind[:1].isupper() or kind == b"tRNS":  # whatever is not needed for the pixels has a small first letter
            kept.append(content[at:end])
        elif kind == b"eXIf":
            metadata.insert(0, content[at + 8 : end - 4])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            metadata.append(_text(kind, content[at + 8 : end - 4]))
        at = end
    return b"".join([*kept, content[at:]]), metadata


def _text(kind: bytes, content: bytes) -> bytes:
    """What a text of a PNG says; EXIF where it is in hexadecimal digits, as ImageMagick writes them."""
    keyword, _, text = content.partition(b"\0")
    if kind == b"zTXt":
        with suppress(zlib.error):
            text = zlib.decompressobj().decompress(text[1:], MOST_TEXT)
    if keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
        with suppress(ValueError):  # after a line break come two lines, its name and length
            text = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    return text


def _jpeg(content: bytes) -> tuple[bytes, list[bytes]]:
    kept, metadata, at = [content[:2]], [], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xFF:  # a marker may have more than one in front
            at += 1
            continue
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        end, body = at + 2 + length, content[at + 4 : at + 2 + length]
        if marker == SCAN or length < 2 or end > len(content):
            break
        beginning, least = COLOURS.get(marker, (b"", 0))
        if marker not in (*APPLICATION, COMMENT) or (least and body.startswith(beginning) and len(body) >= least):
            kept.append(content[at:end])
        elif marker == 0xE1:
            metadata.append(body)
        at = end
    return b"".join([*kept, content[at:]]), metadata


def _webp(content: bytes) -> tuple[bytes, list[bytes]]:
    kept, metadata, at = [], [], 12
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        end = at + 8 + length + length % 2
        if kind in WEBP_PIXELS:
            kept.append(content[at:end])
        elif kind in (b"EXIF", b"XMP "):
            metadata.append(content[at + 8 : at + 8 + length])
        at = end
    body = WEBP + b"".join(kept)
    return RIFF + struct.pack("<I", len(body)) + body, metadata


def _tiff(content: bytes) -> bytes:
    """Its first directory, in the same place, is the only one, with no tags but those that decide pixels."""
    place, entries = _directory(content)
    if not entries:
        return content
    order, (count, _, following) = TIFF[content[:4]], BIG if len(entries[0]) == 20 else SMALL
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in PIXEL_TAGS]
    directory = struct.pack(order + count, len(kept)) + b"".join(kept) + struct.pack(order + following, 0)
    return content[:place] + directory + content[place + len(directory) :]


def _directory(tiff: bytes) -> tuple[int, list[bytes]]:
    """Where the first directory of a TIFF begins, and its entries; none where it is not whole."""
    order, big = TIFF[tiff[:4]], b"+" in tiff[:4]
    count, size, offset = BIG if big else SMALL
    with suppress(struct.error):
        (place,) = struct.unpack_from(order + offset, tiff, 8 if big else 4)
        (number,) = struct.unpack_from(order + count, tiff, place)
        first = place + struct.calcsize(count)
        if number <= MOST_TAGS and first + number * size <= len(tiff):
            return place, [tiff[at : at + size] for at in range(first, first + number * size, size)]
    return 0, []
