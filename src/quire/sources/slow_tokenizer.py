"""Tokenizers that lie in SentencePiece's own format (tokenizer.model): converted once, kept as tokenizer.json.

The file is a protocol buffer, of which four fields are read: pieces, the kind of model, and how text is normalised.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire.checkpoint import read_json
from quire.errors import ConfigError
from quire.sources.cache import cache_root, made_once
from quire.sources.gguf.folder import NO_TOKENIZER
from quire.sources.vocabulary import CONTROL, NORMAL, SPACE, USER_DEFINED, Around, Pieces, likely_pieces, merging_pieces

FAST, SLOW = "tokenizer.json", ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
MAX_BYTES = 64 << 20
MAX_PIECES = 1 << 21
UNIGRAM, BPE = 1, 2


def with_fast_tokenizer(folder: Path, mode: str = "auto", download_dir: str | None = None) -> Path:
    """The folder itself, or one of ours with a tokenizer.json made from the SentencePiece model in it.

    Args:
        mode: as --tokenizer-mode: auto converts where there is no tokenizer.json, slow always, hf never.

    Raises:
        ConfigError: there is no tokenizer, or a broken one.
    """
    slow = next((folder / name for name in SLOW if (folder / name).is_file()), None)
    if (folder / FAST).is_file() and mode != "slow":
        return folder
    if mode == "slow" and slow is None:
        raise ConfigError(f"--tokenizer-mode slow: {folder} has none of {', '.join(SLOW)}.")
    if slow is None or mode == "hf":
        if (folder / NO_TOKENIZER).is_file():
            raise ConfigError((folder / NO_TOKENIZER).read_text())
        return folder  # whoever reads it says what is missing
    kept = [slow, *(folder / name for name in BESIDE if (folder / name).is_file())]
    key = [(path.name, path.stat().st_size, path.stat().st_mtime_ns, str(path)) for path in map(Path.resolve, kept)]

    def make(target: Path) -> None:
        convert(slow).save(str(target / FAST))
        for path in kept[1:]:
            shutil.copyfile(path, target / path.name)

    return made_once(cache_root(download_dir), "tokenizers", folder.name, key, make)


def convert(path: Path) -> Any:
    """The `tokenizers` object of a SentencePiece model, with the tokens that files beside it add.

    Raises:
        ConfigError: it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES}.")
    try:
        model = _Model(path.read_bytes())
        config = read_json(path.parent / "tokenizer_config.json", required=False)
        around = model.around(config)
        make = {UNIGRAM: likely_pieces, BPE: merging_pieces}.get(model.kind)
        if make is None:
            raise ValueError("its model is neither BPE nor unigram")
        core = make(model.pieces, around)
        _add(core, path.parent, config)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the library's own kinds among them
        raise ConfigError(f"{path}: not a SentencePiece model that can be read ({str(error)[:200]}).") from None
    return core


def _add(core: Any, folder: Path, config: dict[str, Any]) -> None:
    """Tokens beyond the model's own, at the ids that the files say; in their order they get those."""
    from tokenizers import AddedToken

    said: dict[int, tuple[str, bool]] = {}
    for text, number in read_json(folder / "added_tokens.json", required=False).items():
        said[int(number)] = (text, False)
    decoder = config.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        said[int(number)] = (str(entry["content"]), bool(entry.get("special")))
    for number, (text, special) in sorted(said.items()):
        core.add_tokens([AddedToken(text, special=special, normalized=False)])
        if core.token_to_id(text) != number:
            raise ValueError(f"added token {text[:60]!r} would be {core.token_to_id(text)}, is {number}")


class _Model:
    """What we take of the file."""

    def __init__(self, content: bytes) -> None:
        texts: list[str] = []
        scores: list[float] = []
        kinds: list[int] = []
        self.kind, self.ids = UNIGRAM, {"bos": 1, "eos": 2}
        how: dict[int, Any] = {}
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(_message(value)))
                texts.append(_message(piece.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", _message(piece.get(2, bytes(4))))[0])
                kinds.append(int(piece.get(3, NORMAL)))
                if len(texts) > MAX_PIECES:
                    raise ValueError(f"more than {MAX_PIECES} pieces")
            elif number == 2:
                trained = dict(_fields(_message(value)))
                self.kind = int(trained.get(3, UNIGRAM))
                self.ids = {"bos": _signed(trained.get(41, 1)), "eos": _signed(trained.get(42, 2))}
            elif number == 3:
                how = dict(_fields(_message(value)))
        if not texts:
            raise ValueError("no pieces in it")
        # user-defined pieces are looked for in the text as it is, where spaces are spaces
        texts = [t.replace(SPACE, " ") if k == USER_DEFINED else t for t, k in zip(texts, kinds, strict=True)]
        self.pieces = Pieces(
            texts,
            scores,
            kinds,
            prefix_space=bool(how.get(3, 1)),
            trim=bool(how.get(4, 1)),
            charsmap=_message(how.get(2, b"")),
        )

    def around(self, config: dict[str, Any]) -> Around:
        """A begin token, unless the config says otherwise; an end token if it does."""

        def token(role: str) -> tuple[int, ...]:
            number = self.ids[role]
            known = 0 <= number < len(self.pieces.texts) and self.pieces.kinds[number] == CONTROL
            return (number,) if known else ()

        before = token("bos") if config.get("add_bos_token", True) else ()
        return Around(before, token("eos") if config.get("add_eos_token", False) else ())


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer's message: number, and an int or bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(content, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if at + length > len(content):
            raise ValueError("it is cut short")
        yield key >> 3, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it is cut short")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number in it is too long")


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field has another type than it should")
    return value


def _signed(value: Any) -> int:
    number = int(value) & ((1 << 64) - 1)
    return number - (1 << 64) if number >> 63 else number
