"""Models of the Hugging Face Hub, fetched by its own client into its own cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from quire.errors import ConfigError
from quire.sources.choose import SMALL_FILES, choose_gguf

_NEVER = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth"]


def fetch(
    name: str,
    revision: str | None,
    *,
    weights: bool,
    download_dir: str | None = None,
    quant: str | None = None,
    wants_gguf: bool = False,
) -> Path | list[Path]:
    """The folder of a repository in the local cache, or its GGUF files.

    Args:
        name: 'owner/model'.
        revision: branch, tag or commit; the same one for every file.
        weights: fetch those too.
        download_dir: a cache in place of the Hub's own.
        quant: take the GGUF with this word in its name.
        wants_gguf: take a GGUF although there is something else.

    Raises:
        ConfigError: not there, no access, offline, or several GGUFs and none named.
    """
    hub = _Hub(name, revision, download_dir)
    if quant is None and not wants_gguf:
        folder = hub.download([*SMALL_FILES, *(["*.safetensors"] if weights else [])], _NEVER)
        if (folder / "config.json").exists() or not any(file.endswith(".gguf") for file in hub.list_files()):
            return folder
    files = choose_gguf(dict.fromkeys(hub.list_files()), quant, f"{name} on the Hugging Face Hub")
    folder = hub.download(files, [])
    return [folder / file for file in files]


class _Hub:
    """One repository."""

    def __init__(self, name: str, revision: str | None, download_dir: str | None) -> None:
        self._name, self._revision = name, revision
        self._cache = None if download_dir is None else Path(download_dir).expanduser()
        self._token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or None
        self._offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")

    def download(self, patterns: list[str], never: list[str]) -> Path:
        """The folder with all files of these patterns."""
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    self._name,
                    revision=self._revision,
                    token=self._token,
                    local_files_only=self._offline,
                    allow_patterns=patterns,
                    ignore_patterns=never,
                    cache_dir=self._cache,
                )
            )
        except Exception as error:  # noqa: BLE001 - whatever goes wrong on the way there, the user gets one sentence
            self._explain(error)

    def list_files(self) -> list[str]:
        """Names of the files that are there; offline, of those in the cache."""
        if self._offline:
            folder = self.download(["*.gguf"], [])
            return [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]
        from huggingface_hub import HfApi

        try:
            return list(HfApi(token=self._token).list_repo_files(self._name, revision=self._revision))
        except Exception as error:  # noqa: BLE001 - as above
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            reason = "is gated on the Hugging Face Hub: accept its terms there and set HF_TOKEN"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = "is neither a folder here nor a model on the Hugging Face Hub (a private one needs HF_TOKEN)"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f"has no revision {self._revision!r} on the Hugging Face Hub; see --revision"
        elif self._offline:
            reason = "is not a folder here nor in the local Hugging Face cache, and HF_HUB_OFFLINE is set"
        elif isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
            reason = "is not a folder here nor in the local Hugging Face cache, and the Hub cannot be reached"
        else:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"cannot be fetched from the Hugging Face Hub: {first_line}"
        raise ConfigError(f"Model {self._name!r} {reason}.") from error
