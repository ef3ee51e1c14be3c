"""A JSON value, found and checked while it arrives (RFC 8259). No recursion, no backtracking.

Two mistakes that models make in strings are repaired, since what they mean is clear: a raw control character is
escaped, and a backslash before a character that JSON does not escape is doubled.
"""

from __future__ import annotations

import re

from quire.frontend.parsers.reader import NotACall, Reader, Truncated, Wait, Write, run_whole

MAX_DEPTH = 64
MAX_ATOM = 256
"""Longest number; Python refuses to read integers of more than 4,300 digits."""

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ATOM_CHARS = "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_WORDS = frozenset({"true", "false", "null"})
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_CLOSER = {"{": "}", "[": "]"}
_HEX = frozenset("0123456789abcdefABCDEF")


def scan_value(reader: Reader, write: Write) -> Wait[None]:
    """Consume one value; `write` gets its text, token by token.

    Raises:
        NotACall: at the first token that is wrong, which is not consumed.
        Truncated: the output ended inside the value.
    """
    closers: list[str] = []
    while True:
        opener = yield from _value_start(reader, write)
        if opener:
            closers.append(_CLOSER[opener])
            if len(closers) > MAX_DEPTH:
                raise NotACall
            if (yield from _solid(reader, write)) != closers[-1]:
                if opener == "{":
                    yield from _key(reader, write)
                continue
        while closers:
            char = yield from _solid(reader, write)
            if char not in (",", closers[-1]):
                raise NotACall
            _take(reader, write, 1)
            if char == ",":
                break
            closers.pop()
        if not closers:
            return
        if closers[-1] == "}":
            yield from _key(reader, write)


def _value_start(reader: Reader, write: Write) -> Wait[str]:
    """Consume a string, number or word, or the opening bracket of a container, which is returned."""
    char = yield from _solid(reader, write)
    if char in _CLOSER:
        _take(reader, write, 1)
        return char
    if char == '"':
        yield from scan_string(reader, write)
    else:
        yield from _atom(reader, write)
    return ""


def _key(reader: Reader, write: Write) -> Wait[None]:
    if (yield from _solid(reader, write)) != '"':
        raise NotACall
    yield from scan_string(reader, write)
    if (yield from _solid(reader, write)) != ":":
        raise NotACall
    _take(reader, write, 1)


def scan_string(reader: Reader, write: Write) -> Wait[None]:
    """Consume a string with its quotes; the quote is ahead."""
    _take(reader, write, 1)
    while True:
        char = yield from reader.need()
        plain = _PLAIN.match(reader.text, reader.at)
        if plain is not None:
            write(plain.group())
            reader.at = plain.end()
        elif char == '"':
            _take(reader, write, 1)
            return
        elif char == "\\":
            yield from _escape(reader, write)
        else:
            write(_SHORT.get(char) or f"\\u{ord(char):04x}")
            reader.at += 1


def _escape(reader: Reader, write: Write) -> Wait[None]:
    pair = yield from reader.ahead(2)
    if len(pair) < 2:
        raise Truncated
    if pair[1] in '"\\/bfnrt':
        _take(reader, write, 2)
        return
    if pair[1] == "u":
        whole = yield from reader.ahead(6)
        if len(whole) < 6:
            raise Truncated
        if _HEX.issuperset(whole[2:]):
            _take(reader, write, 6)
            return
    write("\\\\")
    reader.at += 1


def _atom(reader: Reader, write: Write) -> Wait[None]:
    text = yield from reader.run_ahead(_ATOM_CHARS, MAX_ATOM + 1)
    if reader.ended and reader.at + len(text) == len(reader.text) and len(text) <= MAX_ATOM and not is_atom(text):
        raise Truncated
    if len(text) > MAX_ATOM or not is_atom(text):
        raise NotACall
    _take(reader, write, len(text))


def is_atom(text: str) -> bool:
    """Whether this is a number, true, false or null."""
    return text in _WORDS or _NUMBER.fullmatch(text) is not None


def _solid(reader: Reader, write: Write) -> Wait[str]:
    """Give out white space; the character ahead."""
    while True:
        char = yield from reader.need()
        if char not in " \t\r\n":
            return char
        _take(reader, write, 1)


def _take(reader: Reader, write: Write, count: int) -> None:
    write(reader.text[reader.at : reader.at + count])
    reader.at += count


def whole_json(text: str) -> str | None:
    """The text, repaired, if all of it is one JSON value; else None."""
    return run_whole(scan_value, text)
