"""The hash chain of the prefix cache.

    digest(block i) = SHA-256(digest(block i - 1) + token ids of block i),   digest(block -1) = SHA-256(salt)

A digest names a whole prefix, so the same key works for any tier that stores blocks by content. What must not be
shared between tenants or adapters is mixed into the salt. Positions of a picture all have the same token id, so the
blocks that have any of them go by what is in the picture as well.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import sha256

from quire.messages import Picture

Digest = bytes
HashFunction = Callable[[Digest, bytes], Digest]


def chain(parent: Digest, token_bytes: bytes) -> Digest:
    """Digest of a block from its parent's digest and its own token ids (int32 bytes)."""
    return sha256(parent + token_bytes).digest()


def root(salt: str) -> Digest:
    """Where a chain begins."""
    return sha256(salt.encode()).digest()


def picture_marks(pictures: Sequence[Picture], start: int, end: int) -> bytes:
    """What is to be added to the token ids of positions [start, end): where which picture lies in them."""
    marks = b""
    for picture in pictures_in(pictures, start, end):
        marks += struct.pack("<qq", picture.start - start, picture.length) + picture.digest
    return marks


def pictures_in(pictures: Sequence[Picture], start: int, end: int) -> Sequence[Picture]:
    """Those that have a position in [start, end)."""
    first = bisect_right(pictures, start, key=lambda picture: picture.end)
    last = bisect_right(pictures, end - 1, lo=first, key=lambda picture: picture.start)
    return pictures[first:last]
