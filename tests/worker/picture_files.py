"""Files that are pictures, and files that only look like it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(numbers)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG with a header of any size and whatever else is given."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """50,000 x 50,000 black pixels in some kilobytes, as far as the header goes."""
    return png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)))


def many_scans(num: int = 500) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each goes over the whole picture."""
    data = saved(noise(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num + b"\xff\xd9"


def rotated() -> tuple[bytes, Image.Image]:
    """A JPEG that says that it lies on its side, and how it looks."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    return saved(image, "JPEG", exif=exif, quality=95, subsampling=0), image.transpose(Image.Transpose.ROTATE_270)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>1</script></svg>'


def broken_files() -> dict[str, bytes]:
    """What must be refused, by what is wrong with it."""
    jpeg = saved(noise(200, 200), "JPEG")
    return {
        "bomb": bomb(),
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "truncated PNG": saved(noise())[:300],
        "header only": png(10, 10),
        "cut header": saved(noise())[:14],
        "no size": png(0, 7),
        "thin": saved(Image.new("RGB", (1, 3000))),
        "SVG": SVG,
        "text": b"hello, I am a picture",
        "empty": b"",
        "many scans": many_scans(),
        "many chunks": png(2, 2, *[chunk(b"tEXt", b"a\0b")] * 3000),
        "JPEG of nothing": b"\xff\xd8\xff",
        "TIFF": saved(noise(), "TIFF"),
        "BMP": saved(noise(), "BMP"),
        "broken WEBP": saved(noise(), "WEBP")[:20],
    }
