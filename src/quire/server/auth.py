"""The one gate: when keys are set, every route needs one of them, except those about health."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from quire.server.asgi import Scope, header
from quire.server.errors import HttpError

OPEN_PATHS = frozenset({"/health", "/live", "/ping", "/ready"})


class Gate:
    """Knows the keys, as digests.

    Args:
        keys: none means that everybody may enter.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._digests)

    def check(self, scope: Scope) -> None:
        """Let a request in or not; decided by the path that is routed, never by a Host header.

        Raises:
            HttpError: 401.
        """
        if not self._digests or scope["path"] in OPEN_PATHS:
            return
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them: equal time
        if scheme.lower() != "bearer" or not any(matches):
            raise HttpError(
                401,
                "This server needs an API key: send the header 'authorization: Bearer KEY'.",
                {"www-authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
