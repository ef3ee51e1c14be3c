"""The folder of a GGUF: config and tokenizer written out of its header, and where its tensors are."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from quire.errors import ConfigError
from quire.sources.cache import cache_root, made_once
from quire.sources.files import Location, Remote, write_locations
from quire.sources.gguf.config import make_config
from quire.sources.gguf.header import read_header
from quire.sources.gguf.metadata import Metadata
from quire.sources.gguf.tokenizer import KEY, end_ids, make_tokenizer

log = logging.getLogger("quire.sources")


def gguf_folder(files: Sequence[Location], download_dir: str | None) -> Path:
    """Make it, or find it where it was made before.

    Raises:
        ConfigError, StartupError: the header is broken, or of a model that is not known.
    """
    places: list[Location] = [_absolute(place) for place in files]
    key = [_mark(place) for place in places]
    label = places[0].name.removesuffix(".gguf")

    def make(folder: Path) -> None:
        data = Metadata([read_header(place) for place in places])
        _write(folder / "config.json", make_config(data) | _tokens(data))
        ends = end_ids(data)
        _write(folder / "generation_config.json", {"eos_token_id": ends} if ends else {})
        write_locations(folder, places, [])
        try:
            core, config = make_tokenizer(data)
        except ConfigError as error:  # another may be named with --tokenizer
            (folder / NO_TOKENIZER).write_text(error.message)
            return
        _write(folder / "tokenizer_config.json", config)
        core.save(str(folder / "tokenizer.json"))

    return made_once(cache_root(download_dir), "gguf", label, key, make)


NO_TOKENIZER = "no_tokenizer.txt"
"""Says why there is none."""


def _tokens(data: Metadata) -> dict[str, int]:
    names = {"bos_token_id": f"{KEY}bos_token_id", "eos_token_id": f"{KEY}eos_token_id"}
    found = {name: data.integer(key, None, high=(1 << 32) - 1) for name, key in names.items()}
    return {name: value for name, value in found.items() if value is not None and value < 1 << 31}


def _absolute(place: Location) -> Location:
    return place if isinstance(place, Remote) else place.resolve()


def _mark(place: Location) -> tuple[object, ...]:
    """Changes when the file does."""
    if isinstance(place, Remote):
        return (place.url, place.size)
    try:
        status = place.stat()
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror or 'cannot be read'}.") from None
    return (str(place), status.st_size, status.st_mtime_ns)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
