"""From what the user calls a model to a folder: the table of sources."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quire.errors import ConfigError
from quire.sources import hub, objects
from quire.sources.choose import choose_gguf, complete, only_gguf, siblings
from quire.sources.files import Remote

DEMO = "demo"
"""Names the model inside the package; a folder of that name is ./demo."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_QUANT = re.compile(r"[A-Za-z0-9][\w.-]{0,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; `quant` is the word after a colon that chooses one of several GGUFs."""

    name: str
    quant: str | None
    revision: str | None
    weights: bool
    download_dir: str | None
    wants_gguf: bool


Found = Path | list[Path] | list[Remote]
"""A folder as it is, or the files of a GGUF."""


def resolve(
    name: str,
    revision: str | None = None,
    *,
    weights: bool,
    download_dir: str | None = None,
    load_format: str = "auto",
) -> Path:
    """The local folder of a model, after fetching what must be fetched.

    Args:
        name: 'demo', a folder, a .gguf file, an address (s3://, gs://) or a Hub name ('owner/model'); where there are
            several GGUFs, with a word of one's name after a colon. A folder that exists costs no network call.
        revision: branch, tag or commit on the Hub; the same one for every file.
        weights: also fetch the weights, where a source fetches them.
        download_dir: where fetched files are kept.
        load_format: as the setting; 'gguf' takes a GGUF although there is something else.

    Raises:
        ConfigError: no such folder, not on the Hub, no access, or offline.
        StartupError: a GGUF whose header is broken.
    """
    wanted = Wanted(name, None, revision, weights, download_dir, load_format == "gguf")
    head, colon, quant = name.rpartition(":")
    if colon and _QUANT.fullmatch(quant) and not _exists(Path(name)):
        wanted = replace(wanted, name=head, quant=quant)
    found: Any = None
    for source in SOURCES:
        found = source(wanted)
        if found is not None:
            break
    if found is None:
        raise ConfigError(f"Model {name!r} is neither a folder here nor a Hugging Face name like 'owner/model'.")
    if isinstance(found, Path):
        return found
    if load_format == "safetensors":
        raise ConfigError(f"Model {name!r} is a GGUF; --load-format safetensors excludes that. Use auto or gguf.")
    from quire.sources.gguf.folder import gguf_folder

    return gguf_folder(found, download_dir)


def _demo(wanted: Wanted) -> Found | None:
    if wanted.name != DEMO or wanted.quant:
        return None
    from quire.demo import model_path

    return Path(model_path())


def _local(wanted: Wanted) -> Found | None:
    name = wanted.name
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if not name or not _exists(path):
        if "://" not in name and _is_path(name):
            raise ConfigError(f"Model {name!r}: no such folder.")
        return None
    if not path.is_dir():
        return _local_gguf(path)
    files = {file.name: None for file in path.iterdir()}
    if wanted.quant or wanted.wants_gguf or only_gguf(files):
        return [path / file for file in choose_gguf(files, wanted.quant, str(path))]
    return path


def _local_gguf(path: Path) -> Found:
    if path.suffix != ".gguf":
        raise ConfigError(f"Model {str(path)!r} is a file; give the folder that holds config.json and *.safetensors.")
    parts = siblings(path.name, {file.name: None for file in path.parent.iterdir()})
    return [path.parent / file for file in complete(sorted(parts), str(path.parent))]


def _objects(wanted: Wanted) -> Found | None:
    if not wanted.name.startswith(objects.SCHEMES):
        if "://" in wanted.name:
            raise ConfigError(f"Model {wanted.name!r}: addresses begin with {' or '.join(objects.SCHEMES)}.")
        return None
    if wanted.revision:
        raise ConfigError(f"--revision {wanted.revision!r} is for the Hugging Face Hub; {wanted.name!r} has none.")
    return objects.fetch(
        wanted.name, download_dir=wanted.download_dir, quant=wanted.quant, wants_gguf=wanted.wants_gguf
    )


def _hub(wanted: Wanted) -> Found | None:
    if not _HUB_NAME.fullmatch(wanted.name):
        return None
    return hub.fetch(
        wanted.name,
        wanted.revision,
        weights=wanted.weights,
        download_dir=wanted.download_dir,
        quant=wanted.quant,
        wants_gguf=wanted.wants_gguf,
    )


SOURCES: tuple[Callable[[Wanted], Found | None], ...] = (_demo, _local, _objects, _hub)
"""Asked in this order; None is 'not mine'."""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a zero byte in it
        return False


def _is_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a folder."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or _exists(Path(name.split("/")[0]))
