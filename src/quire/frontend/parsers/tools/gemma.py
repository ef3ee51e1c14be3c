"""Gemma 4: <|tool_call>call:NAME{key:<|"|>text<|"|>,number:5,list:[true,{key:1}]}<tool_call|>, for each call.

FunctionGemma writes the same with <escape> for quotes. Text between quotes is bare; nothing in it is escaped.
"""

from __future__ import annotations

import json
from typing import ClassVar

from quire.frontend.parsers.calls import MAX_GAP, ToolParser
from quire.frontend.parsers.json_text import MAX_DEPTH
from quire.frontend.parsers.python_text import scan_atom
from quire.frontend.parsers.reader import SPACE, NotACall, Truncated, Wait, markers_of

_CALL = markers_of(("call:",))
_CLOSER = {"{": "}", "[": "]"}


class Gemma4Parser(ToolParser):
    """Objects with bare keys.

    Attributes:
        quote: stands before and behind a text.
    """

    openers = ("<|tool_call>",)
    closers = ("<tool_call|>",)
    markers = ("<|tool_call>", "<tool_call|>", '<|"|>')
    quote: ClassVar[str] = '<|"|>'

    def _calls(self, opener: str) -> Wait[None]:
        reader = self._reader
        yield from reader.run(SPACE, MAX_GAP)
        if (yield from reader.literal(_CALL)) is None:
            raise NotACall if (yield from reader.more()) else Truncated
        name = yield from self._text_before("{")
        if not self._tools.knows(name):
            raise NotACall
        self._start_call(name)
        yield from self._object()
        self._end_call()
        yield from self._close()

    def _object(self) -> Wait[None]:
        """Consume an object; its brace is ahead."""
        reader, closers, empty = self._reader, ["}"], [True]
        reader.at += 1
        self._argue("{")
        while closers:
            char = yield from self._solid()
            if char == closers[-1]:
                reader.at += 1
                self._argue(char)
                closers.pop()
                empty.pop()
                continue
            if not empty[-1]:
                yield from reader.expect(",")
                self._argue(", ")
            empty[-1] = False
            if closers[-1] == "}":
                yield from self._key()
            char = yield from self._solid()
            if char in _CLOSER:
                if len(closers) == MAX_DEPTH:
                    raise NotACall
                reader.at += 1
                self._argue(char)
                closers.append(_CLOSER[char])
                empty.append(True)
            else:
                yield from self._text_or_atom()

    def _key(self) -> Wait[None]:
        self._reader.hold()
        quoted = (yield from self._reader.literal(markers_of((self.quote,)))) is not None
        key = yield from self._text_before("<" if quoted else ":")
        if quoted and (yield from self._reader.literal(markers_of((self.quote,)))) is None:
            raise NotACall
        yield from self._reader.expect(":")
        self._reader.release()
        self._argue(json.dumps(key, ensure_ascii=False) + ": ")

    def _text_or_atom(self) -> Wait[None]:
        quote = markers_of((self.quote,))
        if (yield from self._reader.literal(quote)) is None:
            self._argue((yield from scan_atom(self._reader)))
            return
        self._argue('"')
        if (yield from self._reader.until(quote, self._inside)) is None:
            raise Truncated
        self._argue('"')

    def _inside(self, text: str) -> None:
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1])

    def _solid(self) -> Wait[str]:
        char = yield from self._reader.solid()
        if not char:
            raise Truncated
        return char


class FunctionGemmaParser(Gemma4Parser):
    """FunctionGemma: <start_function_call>call:NAME{key:<escape>text<escape>}<end_function_call>."""

    openers = ("<start_function_call>",)
    closers = ("<end_function_call>",)
    markers = ("<start_function_call>", "<end_function_call>", "<escape>")
    quote = "<escape>"
