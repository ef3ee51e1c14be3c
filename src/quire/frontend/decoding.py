"""From token ids to text, a few tokens at a time; the state of one output's decoding is owned here.

A tokenizer decodes a whole list of ids. While tokens arrive we want the same characters, each as soon as it is
certain. Two lanes do that exactly, with one table look-up per token; the third serves every other tokenizer:

    lane        decoder in tokenizer.json               a token is    characters wait for
    bytes       ByteLevel                               bytes         the rest of their UTF-8 sequence
    pieces      Replace, ByteFallback, Fuse, Strip;     text, or      the end of a run of <0xNN> tokens (one bad byte
                or Metaspace                            one byte      changes the text of the whole run)
    windows     anything else                           unknown       the tokenizer itself, asked about short windows
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
_HEX_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Vocabulary(Protocol):
    """What decoding asks of a tokenizer."""

    def id_to_token(self, token_id: int) -> str | None: ...

    def is_special(self, token_id: int) -> bool: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class TextDecoder(Protocol):
    """The decoding of one output. The pieces that `push` and `finish` return make up the whole text."""

    def push(self, token_ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class WithoutTokens:
    """A decoding that passes over some tokens.

    Args:
        decoder: fresh, of all tokens.
        left_out: their ids.
    """

    def __init__(self, decoder: TextDecoder, left_out: frozenset[int]) -> None:
        self._decoder = decoder
        self._left_out = left_out

    def push(self, token_ids: Sequence[int]) -> str:
        """Text of the others."""
        return self._decoder.push([i for i in token_ids if i not in self._left_out])

    def finish(self) -> str:
        """The rest."""
        return self._decoder.finish()


class TightSpecials:
    """A decoding that puts nothing between special tokens that follow each other.

    Args:
        decoder: fresh, of all tokens.
        vocabulary: knows which are special.
    """

    def __init__(self, decoder: TextDecoder, vocabulary: Vocabulary) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._after_special = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Text; a special token after another is just its own."""
        texts = []
        for token_id in token_ids:
            text, special = self._decoder.push((token_id,)), self._vocabulary.is_special(token_id)
            if special and self._after_special:
                text = self._vocabulary.id_to_token(token_id) or text
            texts.append(text)
            self._after_special = special
        return "".join(texts)

    def finish(self) -> str:
        """The rest."""
        return self._decoder.finish()


class Lane(Protocol):
    """How one tokenizer's tokens become text; shared by all outputs."""

    def start(self, skip_special_tokens: bool) -> TextDecoder: ...

    def token_bytes(self, token_id: int) -> bytes: ...


def choose_lane(vocabulary: Vocabulary, decoder: Mapping[str, Any] | None) -> Lane:
    """The exact lane for this `decoder` entry of a tokenizer.json if there is one, else windows."""
    steps = _flatten(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLane(vocabulary)
    if kinds == ["Metaspace"]:
        scheme = steps[0].get("prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never")
        mark = steps[0].get("replacement", "▁")
        return PieceLane(vocabulary, [(mark, " ")], drop_in_first=mark if scheme != "never" else "")
    return _sentencepiece_lane(vocabulary, steps, kinds) or WindowLane(vocabulary)


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _flatten(inner)]
    return [decoder]


def _sentencepiece_lane(vocabulary: Vocabulary, steps: list[Mapping[str, Any]], kinds: list[Any]) -> Lane | None:
    """Replace*, ByteFallback?, Fuse, Strip? in this order, as Llama 2, Mistral and Gemma have them."""
    order = "".join({"Replace": "r", "ByteFallback": "b", "Fuse": "f", "Strip": "s"}.get(kind, "?") for kind in kinds)
    if not re.fullmatch(r"r*b?fs?|r*b?", order) or not order:
        return None
    rules = [(step.get("pattern", {}).get("String"), step.get("content")) for step in steps[: order.count("r")]]
    replace = [(old, new) for old, new in rules if isinstance(old, str) and old and isinstance(new, str)]
    if len(replace) < len(rules):
        return None
    strip = steps[-1] if order.endswith("s") else {}
    if strip.get("stop", 0) or len(strip.get("content", " ")) != 1:
        return None
    return PieceLane(
        vocabulary,
        replace,
        byte_fallback="b" in order,
        strip=strip.get("content", " ") * strip.get("start", 0),
    )


class _Table(dict[int, Any]):
    """Token id → piece, filled on first use: a large vocabulary costs nothing at the start."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> Any:
        piece = self[token_id] = self._make(token_id)
        return piece


# ---------------------------------------------------------------------------------------------------------------
# bytes


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE vocabularies (GPT-2, 2019), reversed."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # an added token is written in plain text
        return token.encode("utf-8", "surrogatepass")


class ByteLane:
    """Tokens are byte strings; their concatenation is UTF-8."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._all = _Table(self.token_bytes)
        self._plain = _Table(lambda i: b"" if vocabulary.is_special(i) else self._all[i])
        self._all_texts = _Table(lambda i: _whole_text(self._all[i]))
        self._plain_texts = _Table(lambda i: _whole_text(self._plain[i]))

    def token_bytes(self, token_id: int) -> bytes:
        token = self._vocabulary.id_to_token(token_id)
        return b"" if token is None else _from_byte_alphabet(token)

    def start(self, skip_special_tokens: bool) -> TextDecoder:
        if skip_special_tokens:
            return _ByteText(self._plain, self._plain_texts)
        return _ByteText(self._all, self._all_texts)


def _whole_text(data: bytes) -> str | None:
    """The text of bytes that are whole characters, else None."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class _ByteText:
    """Nearly always one token comes, of whole characters, and nothing waits: then its text is in a table."""

    __slots__ = ("_table", "_texts", "_utf8", "_waits")

    def __init__(self, table: _Table, texts: _Table) -> None:
        self._table = table
        self._texts = texts
        self._waits = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) == 1 and not self._waits:
            text: str | None = self._texts[token_ids[0]]
            if text is not None:
                return text
        table = self._table
        text = self._utf8.decode(b"".join([table[i] for i in token_ids]))
        self._waits = bool(self._utf8.getstate()[0])
        return text

    def finish(self) -> str:
        return self._utf8.decode(b"", True)


# ---------------------------------------------------------------------------------------------------------------
# pieces


class PieceLane:
    """Tokens are text, or single bytes written <0xNN>.

    Args:
        vocabulary: the tokenizer.
        replace: (old, new) substitutions inside each token, in order.
        byte_fallback: whether <0xNN> tokens are bytes.
        strip: leading characters to drop from the whole text, as many as there are here.
        drop_in_first: a mark that vanishes from the first token instead of becoming a space.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        replace: Iterable[tuple[str, str]],
        *,
        byte_fallback: bool = False,
        strip: str = "",
        drop_in_first: str = "",
    ) -> None:
        self._vocabulary = vocabulary
        self._replace = tuple(replace)
        self._byte_fallback = byte_fallback
        self._strip = strip
        self._drop_in_first = drop_in_first
        self._all = _Table(self._piece)
        self._plain = _Table(lambda i: None if vocabulary.is_special(i) else self._all[i])

    def _piece(self, token_id: int) -> str | int | None:
        """Text, a byte value, or None for an id without a token."""
        token = self._vocabulary.id_to_token(token_id)
        if token is None:
            return None
        for old, new in self._replace:
            token = token.replace(old, new)
        if self._byte_fallback and _HEX_BYTE.fullmatch(token):
            return int(token[3:5], 16)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._all[token_id]
        if piece is None:
            return b""
        return bytes([piece]) if type(piece) is int else piece.encode("utf-8", "surrogatepass")

    def first_piece(self, token_id: int) -> str:
        """The text of a first token, without the mark that stands for a space."""
        return (self._vocabulary.id_to_token(token_id) or "").replace(self._drop_in_first, "")

    def start(self, skip_special_tokens: bool) -> TextDecoder:
        table = self._plain if skip_special_tokens else self._all
        return _PieceText(table, self._strip, self.first_piece if self._drop_in_first else None)


class _PieceText:
    __slots__ = ("_first_piece", "_run", "_strip", "_table")

    def __init__(self, table: _Table, strip: str, first_piece: Callable[[int], str] | None) -> None:
        self._table = table
        self._strip = strip
        self._first_piece = first_piece
        self._run = bytearray()

    def push(self, token_ids: Sequence[int]) -> str:
        table, run = self._table, self._run
        texts: list[str] = []
        for token_id in token_ids:
            piece = table[token_id]
            if type(piece) is int:
                run.append(piece)
            elif piece is not None:
                if self._first_piece is not None:
                    piece, self._first_piece = self._first_piece(token_id), None
                if run:
                    texts.append(self._end_run())
                texts.append(piece)
        return self._stripped("".join(texts))

    def finish(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        """The text of the byte tokens in a row: as UTF-8, or one mark per byte if any of it is malformed."""
        data = bytes(self._run)
        self._run.clear()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return REPLACEMENT * len(data)

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != self._strip[0]:
                self._strip = ""
            else:
                self._strip, text = self._strip[1:], text[1:]
        return text


# ---------------------------------------------------------------------------------------------------------------
# windows


class WindowLane:
    """Any tokenizer, through its own `decode`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def token_bytes(self, token_id: int) -> bytes:
        return self._vocabulary.decode([token_id], skip_special_tokens=False).encode("utf-8", "surrogatepass")

    def start(self, skip_special_tokens: bool) -> TextDecoder:
        return _WindowText(lambda ids: self._vocabulary.decode(ids, skip_special_tokens))


class _WindowText:
    """Decodes the last settled tokens with and without the new ones; the difference is the new text.

        [0, anchor) forgotten | [anchor, settled) context, its text was given out | [settled, len) new

    While nothing comes out, the next look waits until the new tokens have doubled, so the cost stays linear.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given: list[str] = []
        self._anchor = self._settled = 0
        self._next_look = 1

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        if len(self._ids) < self._next_look:
            return ""
        context = self._decode(self._ids[self._anchor : self._settled])
        text = self._decode(self._ids[self._anchor :])
        if len(text) <= len(context) or text.endswith(REPLACEMENT) or not text.startswith(context):
            self._next_look = len(self._ids) + len(self._ids) - self._settled
            return ""
        self._anchor, self._settled = self._settled, len(self._ids)
        self._next_look = self._settled + 1
        self._given.append(text[len(context) :])
        return self._given[-1]

    def finish(self) -> str:
        whole, given = self._decode(self._ids), "".join(self._given)
        return whole[len(given) :] if whole.startswith(given) else ""
