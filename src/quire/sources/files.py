"""Weight files, wherever they lie: how large they are, and any range of their bytes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quire.errors import StartupError
from quire.sources.cache import is_made

WEIGHTS = "weights.json"
"""Beside a folder of ours: where its weights lie."""


@dataclass(frozen=True, slots=True, order=True)
class Remote:
    """An object of a store, by its address (`s3://bucket/path/x.safetensors`)."""

    url: str
    size: int

    @property
    def name(self) -> str:
        """The last word of the address."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url


Location = Path | Remote
"""Of a weight file; both have a name, and are shown in errors as they are."""


class Reader(Protocol):
    """Ranges of one file's bytes; may be used from several threads at once."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            StartupError: there are fewer, or they cannot be read.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As `read`, into a buffer, as many as it holds."""

    def close(self) -> None:
        """Give back what it holds."""


def open_reader(location: Location) -> Reader:
    """Open a weight file.

    Raises:
        StartupError: it cannot be.
    """
    if isinstance(location, Remote):
        from quire.sources.objects import ObjectReader

        return ObjectReader(location)
    return FileReader(location)


class FileReader:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise StartupError(f"{path}: {error.strerror or 'cannot be read'}.") from None

    def read(self, offset: int, length: int) -> bytes:
        """See Reader."""
        content = bytearray(length)
        self.read_into(offset, memoryview(content))
        return bytes(content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See Reader."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise StartupError(f"{self._path}: {error.strerror or 'cannot be read'}.") from None
            if count == 0:
                raise StartupError(f"{self._path}: cut short: it ends at byte {offset + done}.")
            done += count

    def close(self) -> None:
        """See Reader."""
        os.close(self._fd)


def write_locations(folder: Path, locations: list[Location], others: list[str]) -> None:
    """Say in a folder of ours where the weights lie; `others` are files beside them that are no weights to us."""
    entries = [
        {"url": place.url, "size": place.size} if isinstance(place, Remote) else {"path": str(place)}
        for place in locations
    ]
    (folder.parent / WEIGHTS).write_text(json.dumps({"weights": entries, "others": others}, indent=1))


def read_locations(folder: Path) -> tuple[list[Location], list[str]] | None:
    """What `write_locations` wrote; None where the weights are in the folder itself."""
    path = folder.parent / WEIGHTS
    if not is_made(folder) or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    places: list[Location] = [
        Remote(entry["url"], entry["size"]) if "url" in entry else Path(entry["path"]) for entry in found["weights"]
    ]
    return places, found["others"]
