"""Calls written in Python: [name(key=literal, …), …]. Llama 3.2 and 4, Gemma 3, OLMo 3, LFM 2. Nothing is evaluated."""

from __future__ import annotations

import json

from quire.frontend.parsers.calls import MAX_NAME, ToolParser
from quire.frontend.parsers.python_text import scan_literal
from quire.frontend.parsers.reader import NotACall, Truncated, Wait

_NAME_CHARS = "_.-/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class PythonicParser(ToolParser):
    """A list of calls at the start of a line."""

    line_openers = "["

    def _calls(self, opener: str) -> Wait[None]:
        reader = self._reader
        listed = opener == "["
        if not listed and (yield from reader.solid()) == "[":
            reader.at += 1
            listed = True
        while True:
            yield from self._one_call()
            char = yield from reader.solid()
            if char == ",":
                reader.at += 1
                char = yield from reader.solid()
            if char == "]" and listed:
                reader.at += 1
                break
            if not char or char not in _NAME_CHARS:
                if listed:
                    raise NotACall if char else Truncated
                break
            reader.hold()
        yield from self._close()

    def _one_call(self) -> Wait[None]:
        reader = self._reader
        yield from reader.solid()
        name = yield from reader.run(_NAME_CHARS, MAX_NAME)
        yield from reader.expect("(")
        if not self._tools.knows(name):
            raise NotACall
        first = True
        while (yield from self._solid()) != ")":
            if not first:
                reader.hold()
            key = yield from reader.run(_NAME_CHARS, MAX_NAME)
            yield from reader.expect("=")
            if not key:
                raise NotACall
            if first:
                self._start_call(name)
            reader.release()
            self._argue(("{" if first else ", ") + json.dumps(key) + ": ")
            yield from scan_literal(reader, self._argue)
            first = False
            if (yield from self._solid()) == ",":
                reader.at += 1
            elif reader.text[reader.at] != ")":
                raise NotACall
        reader.at += 1
        if first:
            self._start_call(name)
        self._argue("{}" if first else "}")
        self._end_call()

    def _solid(self) -> Wait[str]:
        char = yield from self._reader.solid()
        if not char:
            raise Truncated
        return char


class Llama4PythonicParser(PythonicParser):
    """Llama 4: the list may stand between <|python_start|> and <|python_end|>."""

    openers = ("<|python_start|>",)
    closers = ("<|python_end|>",)
    markers = ("<|python_start|>", "<|python_end|>")


class Lfm2Parser(PythonicParser):
    """LFM 2: <|tool_call_start|>[…]<|tool_call_end|>."""

    openers = ("<|tool_call_start|>",)
    line_openers = ""
    closers = ("<|tool_call_end|>",)
    markers = ("<|tool_call_start|>", "<|tool_call_end|>")


class Olmo3Parser(PythonicParser):
    """OLMo 3: <function_calls>, one call on each line without brackets, </function_calls>."""

    openers = ("<function_calls>",)
    closers = ("</function_calls>",)
    markers = ("<function_calls>", "</function_calls>")
