"""Folders that we make ourselves: what was fetched, or written out of another format. Made once, found by a key."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from quire.errors import ConfigError

INNER = "model"
_MADE = re.compile(r"-[0-9a-f]{20}$")
FORMAT = 1
"""Counts up when folders are made in another way, so that none of before is taken."""


def cache_root(download_dir: str | None) -> Path:
    """Where such folders lie: below --download-dir, or in the user's cache."""
    if download_dir is not None:
        return Path(download_dir).expanduser() / "quire"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "models"


def made_once(root: Path, kind: str, label: str, key: Iterable[object], make: Callable[[Path], None]) -> Path:
    """The folder of a key; `make` fills it where it is not there yet. Others see it whole or not at all.

    It is always the folder `model` of another one: what we say of it (`files.write_locations`) lies beside it, where no
    file of a checkpoint can get.

    Args:
        root: `cache_root(...)`.
        kind: a folder between, for people who look.
        label: begins the folder's name, for the same people.
        key: all that the content follows from.

    Raises:
        ConfigError: nothing can be written there.
    """
    digest = hashlib.sha256(repr((FORMAT, kind, *key)).encode()).hexdigest()[:20]
    folder = root / kind / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)[-60:]}-{digest}"
    if folder.is_dir():
        return folder / INNER
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder.parent} cannot be written ({error.strerror}); see --download-dir.") from None
    try:
        (making / INNER).mkdir()
        make(making / INNER)
        making.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror or error}); see --download-dir.") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder / INNER


def is_made(folder: Path) -> bool:
    """Whether a folder is one of these."""
    return folder.name == INNER and _MADE.search(folder.parent.name) is not None
