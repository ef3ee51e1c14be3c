"""The hash chain of the prefix cache.

    digest(block i) = SHA-256(digest(block i - 1) + token ids of block i),   digest(block -1) = SHA-256(salt)

A digest names a whole prefix, so the same key works for any tier that stores blocks by content. What must not be
shared between tenants, adapters or pictures is mixed into the salt.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

Digest = bytes
HashFunction = Callable[[Digest, bytes], Digest]


def chain(parent: Digest, token_bytes: bytes) -> Digest:
    """Digest of a block from its parent's digest and its own token ids (int32 bytes)."""
    return sha256(parent + token_bytes).digest()


def root(salt: str) -> Digest:
    """Where a chain begins."""
    return sha256(salt.encode()).digest()
