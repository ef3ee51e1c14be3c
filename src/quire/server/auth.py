"""The one gate: when keys are set, every route needs one of them, except those that say whether the server lives."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from quire.server.asgi import Scope, header
from quire.server.errors import HttpError
from quire.server.keys import ANYBODY, Key, Need, digest_of, plain_keys

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/live", "/ready", "/ping"})
"""Whether or not there is a route of that name."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Gate:
    """Knows the keys, as digests.

    Args:
        keys: none means that everybody may enter.
        hosts: names that a Host header may have; None takes any. '*.x.y' stands for all names that end so.
    """

    def __init__(self, keys: Iterable[str | Key], hosts: Sequence[str] | None = None) -> None:
        given = list(keys)
        named = tuple(key for key in given if isinstance(key, Key))
        self.change((*plain_keys(key for key in given if isinstance(key, str)), *named))
        self._hosts = None if hosts is None else tuple(host.lower() for host in hosts)

    def change(self, keys: tuple[Key, ...]) -> None:
        """Other keys from now on; requests that have entered go on."""
        self._keys = keys

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def check(self, scope: Scope) -> Key:
        """Who comes; decided by the path that is routed, never by a Host header.

        Raises:
            HttpError: 401; 403 for a host name that is not ours.
        """
        if scope["path"] in OPEN_PATHS:
            return ANYBODY
        self._check_host(header(scope, b"host"))
        if not self._keys:
            return ANYBODY
        found = self._found(scope)
        if found is None:
            raise HttpError(
                401,
                "This server needs a valid API key: send the header 'authorization: Bearer KEY'.",
                {"www-authenticate": "Bearer", "x-should-retry": "false"},
                code="invalid_api_key",
            )
        return found

    def allow(self, key: Key, need: Need, path: str) -> None:
        """Whether a key is for this kind of route.

        Raises:
            HttpError: 403.
        """
        if need != "any" and need not in key.scopes and path not in OPEN_PATHS:
            raise HttpError(
                403,
                f"The API key '{key.name}' is for {', '.join(sorted(key.scopes))}; this route is for {need}.",
                {"x-should-retry": "false"},
                code="insufficient_scope",
            )

    def _found(self, scope: Scope) -> Key | None:
        """The key in a request; each known one is compared, in equal time."""
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            key = header(scope, b"x-api-key") or ""
        given, found = digest_of(key.strip()), None
        for known in self._keys:
            for digest in known.digests:
                if hmac.compare_digest(given, digest):
                    found = known
        return found if key.strip() else None

    def _check_host(self, host: str | None) -> None:
        """A page of a stranger whose name was made to point here sends that name."""
        if self._hosts is None or host is None:
            return
        name = _host_name(host)
        if not any(name == known or (known.startswith("*.") and name.endswith(known[1:])) for known in self._hosts):
            raise HttpError(
                403,
                "This server does not go by the name in the Host header; --allowed-hosts says which it has.",
                code="host_not_allowed",
            )


def _host_name(host: str) -> str:
    """Without its port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def hosts_of(allowed: Sequence[str], listens_on: str, *, closed: bool) -> tuple[str, ...] | None:
    """Which names a server goes by: those that were given; else, alone on this machine and without keys, local ones."""
    if allowed:
        return None if "*" in allowed else tuple(allowed)
    local = listens_on.startswith("127.") or listens_on in LOCAL_NAMES
    return (*LOCAL_NAMES, "*.localhost", listens_on) if local and not closed else None
