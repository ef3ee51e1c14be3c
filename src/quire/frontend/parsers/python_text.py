"""A Python literal becomes JSON while it arrives. Nothing is ever evaluated.

'it''s'  "x"  '''…'''      → a string; escapes as in Python
12  1_000  0xff  .5  -1e3  → a number
True  False  None          → true, false, null (also when written as in JSON)
[1, 2]  (1, 2)             → an array
{'a': 1, 2: 3}             → an object; keys that are no strings become strings
"""

from __future__ import annotations

import json
import math
import re

from quire.frontend.parsers.json_text import is_atom
from quire.frontend.parsers.reader import NotACall, Reader, Truncated, Wait, Write, run_whole

MAX_DEPTH = 64
MAX_ATOM = 256

_PLAIN = {quote: re.compile(rf"[^{quote}\\]+") for quote in "'\""}
_ATOM_CHARS = "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_WORDS = {"True": "true", "False": "false", "None": "null"}
_WHOLE = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F_]+|[0-9][0-9_]*)")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CLOSER = {"{": "}", "[": "]", "(": ")"}
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": "",
    "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0",
}  # fmt: skip
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_HEX = frozenset("0123456789abcdefABCDEF")


def scan_literal(reader: Reader, write: Write) -> Wait[None]:
    """Consume one literal; `write` gets it as JSON.

    Raises:
        NotACall: at the first token that is wrong, which is not consumed.
        Truncated: the output ended inside the literal.
    """
    closers: list[str] = []
    counts: list[int] = []  # items of each open container; a trailing comma adds none
    while True:
        opener = yield from _value_start(reader, write)
        if opener:
            if len(closers) == MAX_DEPTH:
                raise NotACall
            closers.append(_CLOSER[opener])
            counts.append(0)
            write("{" if opener == "{" else "[")
            if (yield from _solid(reader)) != closers[-1]:
                if opener == "{":
                    yield from _key(reader, write)
                continue
        elif counts:
            counts[-1] += 1
        if (yield from _next_item(reader, write, closers, counts)):
            continue
        return


def _next_item(reader: Reader, write: Write, closers: list[str], counts: list[int]) -> Wait[bool]:
    """Close what ends here; True if another value follows."""
    while closers:
        char = yield from _solid(reader)
        comma = char == ","
        if comma and counts[-1]:
            reader.at += 1
            char = yield from _solid(reader)
            if char != closers[-1]:
                write(", ")
                if closers[-1] == "}":
                    yield from _key(reader, write)
                return True
        if char != closers[-1] or (char == ")" and counts[-1] == 1 and not comma):  # (1) is no tuple
            raise NotACall
        reader.at += 1
        write("}" if char == "}" else "]")
        closers.pop()
        counts.pop()
        if counts:
            counts[-1] += 1
    return False


def _value_start(reader: Reader, write: Write) -> Wait[str]:
    """Consume a string, number or word, or the opening bracket of a container, which is returned."""
    char = yield from _solid(reader)
    if char in _CLOSER:
        reader.at += 1
        return char
    if char in "'\"":
        yield from _string(reader, write)
    else:
        write((yield from scan_atom(reader)))
    return ""


def _key(reader: Reader, write: Write) -> Wait[None]:
    char = yield from _solid(reader)
    if char in "'\"":
        yield from _string(reader, write)
    else:
        write(json.dumps((yield from scan_atom(reader))))
    if (yield from _solid(reader)) != ":":
        raise NotACall
    reader.at += 1
    write(": ")


def _string(reader: Reader, write: Write) -> Wait[None]:
    quote = reader.text[reader.at]
    triple = (yield from reader.ahead(3)) == quote * 3
    end = quote * (3 if triple else 1)
    reader.at += len(end)
    write('"')
    while True:
        char = yield from reader.need()
        plain = _PLAIN[quote].match(reader.text, reader.at)
        if plain is not None:
            write(_inside(plain.group()))
            reader.at = plain.end()
        elif char == "\\":
            yield from _escape(reader, write)
        elif not triple or (yield from reader.ahead(3)) == end:
            reader.at += len(end)
            write('"')
            return
        else:
            write(_inside(char))
            reader.at += 1


def _escape(reader: Reader, write: Write) -> Wait[None]:
    pair = yield from reader.ahead(2)
    if len(pair) < 2:
        raise Truncated
    if pair[1] in _ESCAPES:
        write(_inside(_ESCAPES[pair[1]]))
        reader.at += 2
        return
    size = 2 + _HEX_ESCAPES.get(pair[1], -1)
    whole = yield from reader.ahead(size)
    if size > 2 and len(whole) < size:
        raise Truncated
    digits = whole[2:]
    if digits and _HEX.issuperset(digits) and int(digits, 16) <= 0x10FFFF:
        code = int(digits, 16)
        write(f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else _inside(chr(code)))
        reader.at += size
        return
    write("\\\\")  # Python keeps a backslash that begins no escape
    reader.at += 1


def _inside(text: str) -> str:
    """Text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def scan_atom(reader: Reader) -> Wait[str]:
    """Consume a number or word; it as JSON."""
    text = yield from reader.run_ahead(_ATOM_CHARS, MAX_ATOM + 1)
    value = _atom_to_json(text)
    if value is None:
        at_end = reader.ended and reader.at + len(text) == len(reader.text) and len(text) <= MAX_ATOM
        raise Truncated if at_end else NotACall
    reader.at += len(text)
    return value


def _atom_to_json(text: str) -> str | None:
    if len(text) > MAX_ATOM:
        return None
    if is_atom(text) or text in _WORDS:
        return _WORDS.get(text, text)
    try:
        if _WHOLE.fullmatch(text):
            return str(int(text, 16 if "x" in text.lower() else 10))
        if _REAL.fullmatch(text) and math.isfinite(float(text)):
            return repr(float(text))
    except ValueError:  # underscores in odd places
        pass
    return None


def _solid(reader: Reader) -> Wait[str]:
    """Skip white space; the character ahead."""
    char = yield from reader.solid()
    if not char:
        raise Truncated
    return char


def whole_literal(text: str) -> str | None:
    """JSON, if all of the text is one Python literal; else None."""
    return run_whole(scan_literal, text)
