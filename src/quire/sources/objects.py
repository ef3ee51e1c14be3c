"""Models in object stores: s3://bucket/path and gs://bucket/path.

Configuration and tokenizer are fetched into a folder here; weights stay there, and the loader reads their ranges
straight into parameters. Access is by the usual environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT_URL, ...; GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT) or the machine's role.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from quire.errors import ConfigError, StartupError
from quire.sources.cache import cache_root, made_once
from quire.sources.choose import choose_gguf, is_small, only_gguf, siblings
from quire.sources.files import WEIGHTS, Remote, read_locations, write_locations

SCHEMES = ("s3://", "gs://")
ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "gs": ()}
"""Environment variables that name another server than the scheme's own, the first one that is set."""
MAX_SMALL_BYTES = 256 << 20
THREADS = 8
RETRIES: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
CLIENT: dict[str, Any] = {"connect_timeout": "5s", "timeout": "120s"}
PART_BYTES = 32 << 20
_STATUS = re.compile(r"status code: (\d{3}[\w ]*)")


def fetch(
    url: str, *, download_dir: str | None = None, quant: str | None = None, wants_gguf: bool = False
) -> Path | list[Remote]:
    """The folder with the small files of a model, which says where its weights lie; or its GGUF files.

    Args:
        url: of the folder, or of a GGUF file in it.
        download_dir: small files are kept below it.
        quant, wants_gguf: as for the Hub.

    Raises:
        ConfigError: nothing there, or no access.
    """
    scheme, _, path = url.rstrip("/").partition("://")
    bucket, _, inner = path.partition("/")
    if not bucket:
        raise ConfigError(f"Model {url!r} names no bucket: {scheme}://bucket/path.")
    prefix, _, last = inner.rpartition("/") if inner.endswith(".gguf") else (inner, "", "")
    home = f"{scheme}://{bucket}/{prefix}".rstrip("/")
    found = _list(home, url)
    if last:
        if last not in found:
            raise ConfigError(f"Model {url!r}: no such object.")
        return _places(home, found, choose_gguf(dict.fromkeys(siblings(last, found)), None, url))
    if not found:
        raise ConfigError(f"Model {url!r}: there is nothing under that address.")
    if quant is not None or wants_gguf or only_gguf(found):
        return _places(home, found, choose_gguf(found, quant, url))
    key = [home, sorted((name, str(facts)) for name, facts in found.items())]
    label = home.partition("://")[2]
    return made_once(cache_root(download_dir), scheme, label, key, lambda folder: _fill(folder, home, found))


def bring_here(folder: Path) -> None:
    """Fetch the weights that a folder of ours names, for readers that need files."""
    locations = read_locations(folder)
    if locations is None:
        return
    places = [place for place in locations[0] if isinstance(place, Remote)]
    with ThreadPoolExecutor(THREADS) as pool:
        for place in places:
            _download(place, folder / place.name, pool)
    (folder.parent / WEIGHTS).unlink()


class ObjectReader:
    """See `files.Reader`."""

    def __init__(self, place: Remote) -> None:
        self._place = place
        self.size = place.size
        self._store, self._path = _store_of(place.url)

    def read(self, offset: int, length: int) -> bytes:
        """See Reader."""
        return bytes(self._get(offset, length)) if length else b""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See Reader."""
        if len(buffer):
            buffer[:] = self._get(offset, len(buffer))

    def _get(self, offset: int, length: int) -> memoryview:
        import obstore

        try:
            found = memoryview(obstore.get_range(self._store, self._path, start=offset, length=length))
        except Exception as error:  # noqa: BLE001 - whatever the network does, the user gets one sentence
            raise StartupError(f"{self._place}: {first_line(error)}.") from None
        if len(found) != length:
            raise StartupError(f"{self._place}: cut short: it ends at byte {offset + len(found)}.")
        return found

    def close(self) -> None:
        """See Reader."""


def first_line(error: Exception) -> str:
    """What a store's error says to people."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    status = _STATUS.search(text)
    code = str(error).partition("<Code>")[2].partition("</Code>")[0]
    text = text.partition(" - Server returned")[0].partition(", source:")[0][:300].rstrip(". :")
    why = ", ".join(filter(None, [status[1].strip() if status else "", code[:60]]))
    return f"{text} ({why})" if why else text


def _list(home: str, url: str) -> dict[str, tuple[int, str]]:
    """What lies in a folder of a store: name to (size, mark of the content)."""
    import obstore

    try:
        store, prefix = _store_of(home)
        found = obstore.list_with_delimiter(store, prefix or None)["objects"]
    except Exception as error:  # noqa: BLE001 - as above
        _explain(error, url)
    start = len(prefix) + 1 if prefix else 0
    return {entry["path"][start:]: (entry["size"], str(entry["e_tag"])) for entry in found if entry["path"][start:]}


def _explain(error: Exception, url: str) -> NoReturn:
    hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true where everybody may read"
    if url.startswith("gs://"):
        hint = "set GOOGLE_APPLICATION_CREDENTIALS"
    text = first_line(error)
    denied = any(word in str(error) for word in ("403", "401", "AccessDenied", "credentials", "169.254"))
    raise ConfigError(f"Model {url!r} cannot be read: {text}{f'; {hint}' if denied else ''}.") from error


def _store_of(url: str) -> tuple[Any, str]:
    """The store of an address, and the path in it."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    endpoint = next((os.environ[name] for name in ENDPOINTS[scheme] if os.environ.get(name)), None)
    return _bucket(scheme, bucket, endpoint), path


@cache
def _bucket(scheme: str, bucket: str, endpoint: str | None) -> Any:
    from obstore.store import from_url

    client = {**CLIENT, "allow_http": True} if endpoint is None or endpoint.startswith("http://") else CLIENT
    options = {"endpoint": endpoint} if endpoint else {}
    return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=RETRIES, **options)  # type: ignore[call-overload]


def _places(home: str, found: Mapping[str, tuple[int, str]], names: list[str]) -> list[Remote]:
    return [Remote(f"{home}/{name}", found[name][0]) for name in names]


def _fill(folder: Path, home: str, found: Mapping[str, tuple[int, str]]) -> None:
    """Small files here, the addresses of the others."""
    small = [name for name in found if is_small(name)]
    for name in small:
        if found[name][0] > MAX_SMALL_BYTES:
            raise ConfigError(f"{home}/{name}: {found[name][0]} bytes, more than {MAX_SMALL_BYTES}.")
    with ThreadPoolExecutor(THREADS) as pool:
        for place in _places(home, found, small):
            _download(place, folder / Path(place.name).name, pool)
    weights = [name for name in found if name.endswith(".safetensors")]
    others = [name for name in found if name not in weights and name not in small]
    write_locations(folder, [*_places(home, found, sorted(weights))], sorted(others))


def _download(place: Remote, path: Path, pool: ThreadPoolExecutor) -> None:
    """An object as a file, several ranges at once."""
    reader = ObjectReader(place)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.truncate(fd, place.size)

        def part(start: int) -> None:
            content = memoryview(reader.read(start, min(PART_BYTES, place.size - start)))
            while content:
                written = os.pwrite(fd, content, start)
                content, start = content[written:], start + written

        list(pool.map(part, range(0, place.size, PART_BYTES)))
    finally:
        os.close(fd)
