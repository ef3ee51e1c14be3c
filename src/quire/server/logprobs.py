"""Log-probabilities in the shapes of the two APIs.

chat          content: [{token, logprob, bytes, top_logprobs: [...]}]
completions   tokens: [...], token_logprobs: [...], top_logprobs: [{text: logprob}], text_offset: [...]
both          prompt_logprobs: [null, {token id: {logprob, rank, decoded_token}}, ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.frontend.tokenizer import Tokenizer
from quire.messages import TokenLogprobs


def to_json_number(logprob: float) -> float:
    """A log-probability that JSON can carry; impossible tokens have minus infinity."""
    return max(logprob, -9999.0)


def cut(entry: TokenLogprobs, count: int) -> tuple[list[int], list[float]]:
    """The chosen token and `count` of the most likely ones, -1 for all: ids and log-probabilities."""
    end = None if count == -1 else 1 + count
    return entry.token_ids[:end], [to_json_number(logprob) for logprob in entry.logprobs[:end]]


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], count: int
) -> list[dict[int, dict[str, Any]] | None]:
    """Of each token of the prompt: None for the first, else the token itself and the most likely ones."""
    found: list[dict[int, dict[str, Any]] | None] = [None]
    for entry in entries:
        ids, values = cut(entry, count)
        position: dict[int, dict[str, Any]] = {}
        for token_id, logprob, rank in zip(ids, values, [entry.rank, *range(1, len(ids))], strict=True):
            shown = {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_text(token_id)}
            position.setdefault(token_id, shown)
        found.append(position)
    return found


class ChatShape:
    """Log-probabilities in chat's shape.

    Args:
        tokenizer: names the tokens.
        count: how many are shown beside the chosen token, None for no log-probabilities at all.
        as_ids: write tokens as token_id:N.
    """

    def __init__(self, tokenizer: Tokenizer, count: int | None, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._as_ids = as_ids

    def of(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        """The `logprobs` of a choice; None if the request wants none."""
        if self._count is None:
            return None
        return {"content": [self._position(entry, self._count) for entry in entries or ()], "refusal": None}

    def _position(self, entry: TokenLogprobs, count: int) -> dict[str, Any]:
        shown = [self._entry(token_id, logprob) for token_id, logprob in zip(*cut(entry, count), strict=True)]
        return {**shown[0], "top_logprobs": shown[1:]}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        text = f"token_id:{token_id}" if self._as_ids else data.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class CompletionShape:
    """Log-probabilities in the completion API's shape; knows where in the text the next token begins.

    Args as for `ChatShape`, and:
        prompt_count: how many are shown where the prompt is echoed.
    """

    def __init__(
        self, tokenizer: Tokenizer, count: int | None, *, prompt_count: int | None = None, as_ids: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._prompt_count = prompt_count or 0
        self._as_ids = as_ids
        self._offset = 0

    def of(
        self,
        entries: Sequence[TokenLogprobs] | None,
        prompt: tuple[str, Sequence[int], Sequence[TokenLogprobs]] | None = None,
    ) -> dict[str, Any] | None:
        """The `logprobs` of a choice; None if the request wants none.

        Args:
            entries: of new tokens.
            prompt: its text, its tokens, and the entries of all of them but the first, where it is echoed.
        """
        if self._count is None:
            return None
        shape: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if prompt is not None:
            self._echo(shape, *prompt)
        for entry in entries or ():
            self._add(shape, entry, len(self._tokenizer.token_text(entry.token_ids[0])), self._count)
        return shape

    def _echo(
        self, shape: dict[str, list[Any]], text: str, ids: Sequence[int], entries: Sequence[TokenLogprobs]
    ) -> None:
        """The prompt's tokens. One that does not stand in the text, such as a begin mark, has no length there."""
        for index, token_id in enumerate(ids):
            piece = self._tokenizer.token_text(token_id)
            hidden = self._tokenizer.is_special(token_id) and not text.startswith(piece, self._offset)
            width = 0 if hidden else len(piece)
            if index and index <= len(entries):
                self._add(shape, entries[index - 1], width, self._prompt_count)
                continue
            shape["tokens"].append(self._name(token_id))
            shape["token_logprobs"].append(None)
            shape["top_logprobs"].append(None)
            shape["text_offset"].append(self._offset)
            self._offset += width
        self._offset = len(text)

    def _add(self, shape: dict[str, list[Any]], entry: TokenLogprobs, width: int, count: int) -> None:
        ids, values = cut(entry, count)
        names = [self._name(token_id) for token_id in ids]
        shape["tokens"].append(names[0])
        shape["token_logprobs"].append(values[0])
        # the chosen token comes first and wins where two tokens have the same text
        ranked = [*zip(names[1:], values[1:], strict=True), (names[0], values[0])]
        shape["top_logprobs"].append(dict(ranked))
        shape["text_offset"].append(self._offset)
        self._offset += width

    def _name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)
