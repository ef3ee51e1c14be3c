"""A tokenizer out of a GGUF's metadata (tokenizer.ggml.*), in the two files that a checkpoint has."""

from __future__ import annotations

import logging
from typing import Any

import tokenizers

from quire.errors import ConfigError, StartupError
from quire.sources.gguf.metadata import Metadata
from quire.sources.vocabulary import (
    CONTROL,
    NORMAL,
    SPLITTINGS,
    Around,
    Pieces,
    Splitting,
    byte_pairs,
    merging_pieces,
)

log = logging.getLogger("quire.sources")
KEY = "tokenizer.ggml."
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
"""Control tokens that end an answer although files name only one of them."""


def make_tokenizer(data: Metadata) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, and what tokenizer_config.json would say.

    Raises:
        ConfigError: none in the file, or one of a kind that is not known; --tokenizer names another.
        StartupError: its parts do not fit together.
    """
    kind = data.text(f"{KEY}model", "none")
    if kind not in ("llama", "gpt2"):
        what = "has no tokenizer" if kind in ("none", "no_vocab") else f"has a tokenizer of kind {kind[:40]!r}"
        raise ConfigError(f"{data.where} {what}; name the model's own with --tokenizer. Kinds read: gpt2, llama.")
    texts = data.items(f"{KEY}tokens", str)
    kinds = data.items(f"{KEY}token_type", int, [NORMAL] * len(texts))
    if len(kinds) != len(texts):
        data.fail(f"{KEY}token_type", f"must have {len(texts)} entries", len(kinds))
    try:
        core = _pieces(data, texts, kinds) if kind == "llama" else _pairs(data, texts, kinds)
    except (ConfigError, StartupError):
        raise
    except Exception as error:  # noqa: BLE001 - the library's own kinds
        raise StartupError(f"{data.where}: its tokenizer cannot be built ({str(error)[:200]}).") from None
    return core, _tokenizer_config(data, texts)


def end_ids(data: Metadata) -> list[int]:
    """All tokens that end an answer."""
    texts = data.items(f"{KEY}tokens", str, [])
    kinds = data.items(f"{KEY}token_type", int, [])
    named = [_token_id(data, name, len(texts)) for name in ENDS]
    wanted = set(TURN_ENDS)
    by_text = [
        i for i, (text, kind) in enumerate(zip(texts, kinds, strict=False)) if kind == CONTROL and text in wanted
    ]
    return list(dict.fromkeys([i for i in named if i is not None] + by_text))


def _pieces(data: Metadata, texts: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    scores = data.items(f"{KEY}scores", float)
    if len(scores) != len(texts):
        data.fail(f"{KEY}scores", f"must have {len(texts)} entries", len(scores))
    prefix = data.flag(f"{KEY}add_space_prefix", True)
    trim = data.flag(f"{KEY}remove_extra_whitespaces", False)
    pieces = Pieces(texts, scores, kinds, prefix_space=prefix, trim=trim)
    return merging_pieces(pieces, _around(data, len(texts), bos=True))


def _pairs(data: Metadata, texts: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    how = _splitting(data)
    merges = data.items(f"{KEY}merges", str)
    return byte_pairs(texts, kinds, merges, how, _around(data, len(texts), bos=how.bos))


def _splitting(data: Metadata) -> Splitting:
    name = data.text(f"{KEY}pre", None)
    if name is None:
        log.warning("%s does not say how text is cut (%spre); taken as the default of llama.cpp.", data.where, KEY)
        name = "default"
    if name not in SPLITTINGS:
        data.fail(
            f"{KEY}pre", "is a way to cut text that is not known; name the model's tokenizer with --tokenizer", name
        )
    return SPLITTINGS[name]


def _around(data: Metadata, count: int, *, bos: bool) -> Around:
    """What the file has added around a text."""
    begin, end = _token_id(data, "bos_token_id", count), _token_id(data, "eos_token_id", count)
    before = begin is not None and data.flag(f"{KEY}add_bos_token", bos)
    after = end is not None and data.flag(f"{KEY}add_eos_token", False)
    return Around((begin,) if before and begin is not None else (), (end,) if after and end is not None else ())


def _token_id(data: Metadata, name: str, count: int) -> int | None:
    key = f"{KEY}{name}"
    value = data.integer(key, None, high=(1 << 32) - 1)
    if value is None or value == (1 << 32) - 1:  # what some writers mean by none
        return None
    if value >= count:
        data.fail(key, f"must be below {count}, the number of tokens", value)
    return int(value)


def _tokenizer_config(data: Metadata, texts: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role, name in ROLES.items():
        token = _token_id(data, name, len(texts))
        if token is not None:
            config[role] = texts[token]
    template = data.text("tokenizer.chat_template", None)
    named = {name: data.text(f"tokenizer.chat_template.{name}", None) for name in
             data.items("tokenizer.chat_templates", str, [])}  # fmt: skip
    if template is not None:
        config["chat_template"] = template
    if any(named.values()):
        every = {"default": template, **named}
        config["chat_template"] = [{"name": n, "template": text} for n, text in every.items() if text is not None]
    return config
