"""What a picture's file says of itself in its first bytes: format and size, before any decoder sees it.

And what would keep a decoder busy for long although the picture is small: a great many pieces.

    PNG   signature, chunks: length, name, data, checksum; the first is IHDR with the size
    JPEG  FF D8, segments: FF, kind, length, data; SOF has the size, SOS begins the pixels, one scan each
    GIF   GIF87a or GIF89a, size
    WEBP  RIFF, length, WEBP, one of VP8, VP8L, VP8X with the size
"""

from __future__ import annotations

import struct

MAX_SCANS = 64
"""Of a progressive JPEG: each goes over the whole picture. Cameras and web services write about ten."""
MAX_PIECES = 100_000
"""Chunks of a PNG."""
MAX_SEGMENTS = 2000
"""Segments of a JPEG before its pixels, and chunks of a PNG that have no pixels."""
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class BadHeader(Exception):
    """It is none of the four, or broken; the argument says what."""


def look(data: bytes) -> tuple[str, int, int]:
    """(format, width, height).

    Raises:
        BadHeader: no such format, cut off, or made of too many pieces.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "PNG", *_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return "JPEG", *_jpeg(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return "GIF", *struct.unpack_from("<HH", data, 6)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return "WEBP", *_webp(data)
    except (struct.error, IndexError):
        raise BadHeader("is cut off within its header") from None
    raise BadHeader("is no PNG, JPEG, WEBP or GIF")


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise BadHeader("is a broken PNG: it does not begin with IHDR")
    place = 8
    num_others = 0
    for _ in range(MAX_PIECES):
        if place + 8 > len(data):
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        length, name = struct.unpack_from(">I4s", data, place)
        num_others += name != b"IDAT"
        if num_others > MAX_SEGMENTS:
            break
        place += 12 + length
    raise BadHeader("is a PNG of too many chunks")


def _jpeg(data: bytes) -> tuple[int, int]:
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise BadHeader(f"is a JPEG of more than {MAX_SCANS} scans")
    place, size = 2, None
    for _ in range(MAX_SEGMENTS):
        if data[place] != 0xFF:
            raise BadHeader("is a broken JPEG: a marker is missing")
        kind = data[place + 1]
        if kind == 0xFF:  # a filling byte
            place += 1
            continue
        if kind == 0xDA:
            if size is None:
                raise BadHeader("is a broken JPEG: it has no size")
            return size
        if kind in _SOF:
            height, width = struct.unpack_from(">HH", data, place + 5)
            size = width, height
        place += 2
        if kind not in (0x01, *range(0xD0, 0xD9)):
            place += max(2, *struct.unpack_from(">H", data, place))
    raise BadHeader("is a JPEG of too many segments")


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise BadHeader("is a broken WEBP")
