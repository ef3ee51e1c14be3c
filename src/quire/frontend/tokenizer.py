"""Tokenizer: text to ids and back, from a checkpoint's tokenizer.json.

tokenizer.json          vocabulary, merges, how special tokens are added (required)
tokenizer_config.json   names of the special tokens, often the chat template
chat_template.json      the chat template, as processors of pictures wrote it once; wins over the one above
chat_template.jinja     the chat template; wins over both
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from quire.checkpoint import read_json
from quire.errors import ConfigError, RequestError
from quire.frontend.decoding import TextDecoder, TightSpecials, WithoutTokens, choose_lane
from quire.frontend.detokenizer import AnyDetokenizer, Detokenizer, NoDetokenizer
from quire.frontend.stops import StopAutomaton, StopMatcher
from quire.params import SamplingParams

LONG_TEXT = 2_000
"""Characters from which encoding is handed to a thread: about 0.35 ms of work, three times the hand-over. For shorter
texts a thread holds others up no less, since it wants the interpreter's lock as well: benchmarks/NOTES.md."""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Owns the vocabulary of one model. Safe to use from several threads at once.

    Args:
        core: the `tokenizers` object.
        config: the content of tokenizer_config.json.
        template: chat template, or several by name; None if the checkpoint has none.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        config: dict[str, Any] | None = None,
        template: str | dict[str, str] | None = None,
    ) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self._config = config or {}
        self.chat_template = template
        added = core.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._added = frozenset(added)
        self._lane = choose_lane(self, msgspec.json.decode(core.to_str())["decoder"])
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read a checkpoint's tokenizer.

        Raises:
            ConfigError: there is no tokenizer.json, or a file cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"{folder} has no tokenizer.json. Write one with transformers: "
                "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER), "
                "or name a folder that has one with --tokenizer."
            )
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        config = read_json(folder / "tokenizer_config.json", required=False)
        return cls(core, config, _read_template(folder, config))

    def close(self) -> None:
        """Give back the threads; encoding still works, and starts new ones where it needs them."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    # ---- facts ---------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of ids that have a token, added tokens included."""
        return int(self._core.get_vocab_size())

    @property
    def num_added(self) -> int:
        """Tokens among them that were added to the vocabulary later."""
        return self.vocab_size - int(self._core.get_vocab_size(with_added_tokens=False))

    @property
    def special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` leaves out."""
        return sorted(self._special)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the special tokens by role (`bos_token`, `eos_token`, ...), as chat templates use them."""
        texts = {name: _token_text(self._config.get(name)) for name in _SPECIAL_NAMES}
        return {name: text for name, text in texts.items() if text is not None}

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, or None."""
        try:
            token: str | None = self._core.id_to_token(token_id)
        except OverflowError:
            return None
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's own spelling, or None."""
        token_id: int | None = self._core.token_to_id(token)
        return token_id

    def end_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own eos_token, for checkpoints whose config names no end token."""
        token = self.special_tokens.get("eos_token")
        token_id = self.token_to_id(token) if token else None
        return () if token_id is None else (token_id,)

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves this token out."""
        return token_id in self._special

    def is_added(self, token_id: int) -> bool:
        """Whether this token stands for a fixed text that never runs together with others."""
        return token_id in self._added

    def special_by_text(self) -> dict[str, int]:
        """The special tokens by their texts."""
        return {token: i for i in self._special if (token := self.id_to_token(i))}

    # ---- text → ids ----------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with the tokens around it that the checkpoint's post-processor adds.

        Raises:
            RequestError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            # not `encode`: that one holds the interpreter's lock, so a thread would not help, and counts offsets
            ids: list[int] = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except (TypeError, UnicodeEncodeError):
            raise RequestError("The text is not valid Unicode: it has a lone surrogate.", param="prompt") from None
        return ids

    def encode_many(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """As `encode`, for several texts; in their order."""
        try:
            found = self._core.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise RequestError("A text is not valid Unicode: it has a lone surrogate.", param="prompt") from None
        return [encoding.ids for encoding in found]

    async def encode_async(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `encode`; a long text is encoded in a thread, since it would hold up every stream."""
        if len(text) < LONG_TEXT:
            return self.encode(text, add_special_tokens=add_special_tokens)
        return (await self.encode_many_async([text], add_special_tokens=add_special_tokens))[0]

    async def encode_many_async(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """As `encode_many`; in a thread, if it is much text in all."""
        if sum(map(len, texts)) < LONG_TEXT:
            return self.encode_many(texts, add_special_tokens=add_special_tokens)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="quire-tokenize")
        work = partial(self.encode_many, texts, add_special_tokens=add_special_tokens)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # ---- ids → text ----------------------------------------------------------------------------------------------

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole list of ids."""
        text: str = self._core.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to the text; may be part of a character."""
        return self._lane.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own; U+FFFD where it is part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(self, params: SamplingParams) -> AnyDetokenizer:
        """A fresh detokenizer for one output of a request."""
        return self.detokenizers(params, 1)[0]

    def _decoder(self, params: SamplingParams, kept: frozenset[int]) -> TextDecoder:
        if not params.skip_special_tokens and not params.spaces_between_special_tokens:
            return TightSpecials(self._lane.start(False), self)
        if not params.skip_special_tokens or not kept:
            return self._lane.start(params.skip_special_tokens)
        return WithoutTokens(self._lane.start(False), self._special - kept)

    def detokenizers(self, params: SamplingParams, count: int, keep: Sequence[str] = ()) -> list[AnyDetokenizer]:
        """Fresh detokenizers for `count` outputs of a request; the stop strings are compiled once.

        keep: special tokens that stay in the text although the request skips those.
        """
        if not params.detokenize:
            return [NoDetokenizer() for _ in range(count)]
        automaton = StopAutomaton(params.stop) if params.stop else None
        kept = frozenset(i for i in map(self._core.token_to_id, keep) if i in self._special)
        return [
            Detokenizer(
                self._decoder(params, kept),
                StopMatcher(automaton, params.include_stop_str_in_output) if automaton else None,
                min_tokens=params.min_tokens,
                include_stop=params.include_stop_str_in_output,
            )
            for _ in range(count)
        ]


def _token_text(entry: Any) -> str | None:
    """tokenizer_config.json writes a special token as text or as {"content": text, ...}."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _read_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    entry = read_json(folder / "chat_template.json", required=False).get("chat_template") or config.get("chat_template")
    if isinstance(entry, list):
        return {str(item["name"]): str(item["template"]) for item in entry if {"name", "template"} <= item.keys()}
    return entry if isinstance(entry, str) else None
