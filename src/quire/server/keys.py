"""API keys: where they come from, what each may do. Kept as digests; the keys themselves are forgotten at once.

--api-key KEY, QUIRE_API_KEY=K1,K2      may do everything, without limits
--api-key-file FILE                     YAML, or JSON: a list of entries

- name: team-a                  # required; in metrics, and what the cache is kept apart by
  key: sk-...                   # the key, or `digest`: sha256:<64 hex digits>; a list of them while keys change
  scopes: [inference]           # of inference, metrics, admin; default inference
  requests_per_minute: 600      # each of the three may be left out
  tokens_per_minute: 200000
  max_concurrent_requests: 32
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quire.config import ServerConfig
from quire.errors import ConfigError

Need = Literal["inference", "metrics", "admin", "any"]
"""What a route needs its caller's key to be for; any valid one will do for 'any'."""
SCOPES: tuple[Need, ...] = ("inference", "metrics", "admin")
MAX_KEYS = 1000
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """Who may enter. Several keys of one entry are one and the same caller."""

    name: str
    digests: tuple[bytes, ...] = ()
    scopes: frozenset[str] = frozenset(SCOPES)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None


ANYBODY = Key(name="")
"""The caller where no keys are set."""

_Limit = Annotated[int, Meta(ge=1, le=2**53)] | None


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An entry of the file."""

    name: Annotated[str, Meta(pattern=_NAME)]
    key: str | list[str] = []
    digest: str | list[str] = []
    scopes: tuple[Literal["inference", "metrics", "admin"], ...] = ("inference",)
    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    max_concurrent_requests: _Limit = None


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def plain_keys(keys: Iterable[str]) -> tuple[Key, ...]:
    """Keys without a file: named by their places.

    Raises:
        ConfigError: one is empty, as of a variable that is not set.
    """
    named = tuple(keys)
    if not all(key.strip() for key in named):
        raise ConfigError("--api-key is empty. Leave it out to serve everybody, or give a key.")
    return tuple(Key(name=f"key-{i}", digests=(digest_of(key),)) for i, key in enumerate(named, 1))


def keys_of(config: ServerConfig) -> tuple[Key, ...]:
    """All keys of a server; none means that everybody may enter.

    Raises:
        ConfigError: the file cannot be read, or says what cannot be; the message never shows a key.
    """
    keys = plain_keys(config.api_key)
    if config.api_key_file is not None:
        keys += _read(Path(config.api_key_file))
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two API keys have the name {_first_twice(names)!r}.")
    digests = [digest for key in keys for digest in key.digests]
    if len(set(digests)) < len(digests):
        raise ConfigError("One and the same API key is given twice.")
    if len(keys) >= MAX_KEYS:
        raise ConfigError(f"There are {len(keys)} API keys; the limit is {MAX_KEYS - 1}.")
    return keys


def _read(path: Path) -> tuple[Key, ...]:
    import yaml

    where = f"--api-key-file {str(path)!r}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(f"{where} is not YAML.") from None  # the parser's words would show the line
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{where} must be a list of entries, each with a name and a key or digest.")
    return tuple(_key(entry, f"{where}, entry {i}") for i, entry in enumerate(content, 1))


def _key(values: Any, where: str) -> Key:
    try:
        entry = msgspec.convert(values, _Entry)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {str(error).replace('`', '')}.") from None
    keys = [entry.key] if isinstance(entry.key, str) else entry.key
    digests = [_parsed(text, where) for text in ([entry.digest] if isinstance(entry.digest, str) else entry.digest)]
    if not all(key.strip() for key in keys) or not (keys or digests):
        raise ConfigError(f"{where}: a key or a digest is needed, and none may be empty.")
    return Key(
        name=entry.name,
        digests=(*map(digest_of, keys), *digests),
        scopes=frozenset(entry.scopes),
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        max_concurrent_requests=entry.max_concurrent_requests,
    )


def _parsed(text: str, where: str) -> bytes:
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise ConfigError(f"{where}: a digest is 'sha256:' and 64 hex digits, as `printf %s KEY | sha256sum` says.")
    return bytes.fromhex(found.group(1))


def _first_twice(names: list[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
