"""From what a request carries to the pixels that the vision tower takes. Slow and hostile work: called in threads.

data: URL ── base64 ──► file ── header ── limits ── Pillow, first frame ──► upright, RGB ── resize, cut ──► bytes
"""

from __future__ import annotations

import binascii
import hashlib
import struct
from typing import TYPE_CHECKING, Any

from quire.errors import RequestError
from quire.frontend.media.header import BadHeader, look
from quire.frontend.media.parts import Source
from quire.frontend.media.protocol import Ready
from quire.frontend.timelimit import TimeLimitExceeded, run_limited
from quire.pictures import PictureFacts

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 10.0
"""For one picture; what a single call of a decoder may take is bounded by bytes, pixels and pieces."""
MAX_RATIO = 200
"""Of the longer edge to the shorter one: a thin picture grows when its short edge is stretched."""
PIECE = 1 << 18
"""Characters of base64 at a time, so that other threads get their turn."""
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112
"""In EXIF data: how the picture is turned."""


def make_ready(source: Source, facts: PictureFacts, max_pixels: int) -> Ready:
    """All of it.

    Raises:
        RequestError: naming the part of the request, what is wrong and the limit.
    """
    try:
        return run_limited(lambda: _make_ready(source, facts, max_pixels), SECONDS)
    except TimeLimitExceeded:
        raise _refused(source, f"took longer than {SECONDS:g} s to decode") from None


def num_bytes(source: Source) -> int:
    """Of the file, at most; 0 where there is none."""
    if not isinstance(source.data, str):
        return 0
    return (len(source.data) - source.data.index(",") - 1) * 3 // 4


def _make_ready(source: Source, facts: PictureFacts, max_pixels: int) -> Ready:
    if isinstance(source.data, str):
        image = _decoded(source, _from_base64(source), max_pixels)
    else:
        image = _given(source, max_pixels)
    pixels = fitted(image, facts).tobytes()
    digest = hashlib.sha256(struct.pack("<qq", facts.height, facts.width) + pixels).digest()
    return Ready(digest, facts.height, facts.width, pixels)


def fitted(image: Image, facts: PictureFacts) -> Image:
    """An RGB picture in the size that the tower takes: resized, then its middle, with black where it is too small."""
    width, height = image.size
    if facts.shortest_edge:
        short, long = sorted((width, height))
        other = int(facts.shortest_edge * long / short)
        size = (facts.shortest_edge, other) if width <= height else (other, facts.shortest_edge)
        image = image.resize(size, resample=facts.resampling)
    elif facts.resized:
        image = image.resize(facts.resized[::-1], resample=facts.resampling)
    left, top = (image.width - facts.width) // 2, (image.height - facts.height) // 2
    return image.crop((left, top, left + facts.width, top + facts.height))


def upright_rgb(image: Image) -> Image:
    """As a viewer shows it on a white page: turned as its EXIF data says, 16 bits brought to 8."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off instead of scale
        import numpy as np

        image = pillow.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        shown = image.convert("RGBA")
        page = pillow.new("RGBA", shown.size, WHITE)
        page.alpha_composite(shown)
        image = page
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_base64(source: Source) -> bytes:
    url: str = source.data
    start = url.index(",") + 1
    length = len(url) - start
    pieces = []
    try:
        for place in range(start, len(url), PIECE):
            piece = url[place : place + PIECE]
            if place + PIECE >= len(url) and length % 4 and not piece.endswith("="):
                piece += "=" * (-length % 4)  # some leave it out
            pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    except ValueError:  # binascii.Error is one, and so is what says that it is no ASCII
        raise _refused(source, "is not valid base64 after the comma") from None
    return b"".join(pieces)


def _decoded(source: Source, data: bytes, max_pixels: int) -> Image:
    from io import BytesIO

    from PIL import Image as pillow

    try:
        kind, width, height = look(data)
    except BadHeader as error:
        raise _refused(source, str(error)) from None
    _check_size(source, width, height, max_pixels)
    try:
        with pillow.open(BytesIO(data), formats=(kind,)) as image:
            if image.size != (width, height):
                _check_size(source, *image.size, max_pixels)
            image.load()
            return upright_rgb(image)
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - a decoder fails in many ways, and all are the picture's fault
        raise _refused(source, f"cannot be decoded as {kind} ({type(error).__name__})") from None


def _given(source: Source, max_pixels: int) -> Image:
    """A picture that a program on this side has: Pillow's, or an array [height, width, 3] of bytes."""
    from PIL import Image as pillow

    given: Any = source.data
    if not isinstance(given, pillow.Image):
        if getattr(given, "dtype", None) != "uint8" or len(given.shape) != 3 or given.shape[2] != 3:
            kind = type(given).__name__
            raise _refused(source, f"must be a PIL image or a uint8 array [height, width, 3], got {kind}")
        _check_size(source, given.shape[1], given.shape[0], max_pixels)
        return pillow.fromarray(given)
    _check_size(source, given.width, given.height, max_pixels)
    try:
        return upright_rgb(given)
    except Exception as error:  # noqa: BLE001 - it may be a file that is read only now
        raise _refused(source, f"cannot be read ({type(error).__name__})") from None


def _check_size(source: Source, width: int, height: int, max_pixels: int) -> None:
    if not width or not height:
        raise _refused(source, f"has {width} x {height} pixels")
    if width * height > max_pixels:
        raise _refused(
            source, f"has {width} x {height} pixels, {max_pixels} are the most there may be (--max-picture-pixels)"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise _refused(source, f"has {width} x {height} pixels; one edge may be {MAX_RATIO} times the other at most")


def _refused(source: Source, reason: str) -> RequestError:
    param = source.where.split("[", 1)[0].split(".", 1)[0]
    return RequestError(f"The picture at {source.where} {reason}.", param=param, code="invalid_picture")
