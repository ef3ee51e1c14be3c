"""Calls written as tags: <function=NAME> <parameter=KEY>value</parameter> … </function>, and their relatives.

A value is bare text. It is given out as a JSON string while it arrives, unless the function's schema wants something
else: then it is read as JSON or as a Python literal, and stays a string if it is neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from quire.frontend.parsers.calls import MAX_GAP, MAX_NAME, ToolParser
from quire.frontend.parsers.json_text import whole_json
from quire.frontend.parsers.protocol import ANY_TOOLS, ToolSet
from quire.frontend.parsers.python_text import whole_literal
from quire.frontend.parsers.reader import SPACE, Markers, NotACall, Reader, Truncated, Wait, Write, markers_of

_MAX_SCHEMAS = 256
_UNIONS = ("anyOf", "oneOf", "allOf")
_JSON_TYPES: dict[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


class TaggedToolParser(ToolParser):
    """Tags around names and values.

    Attributes:
        function_opener, function_closer: around a call; the name, quoted or not, stands between the opener and ">".
        parameter_opener, parameter_closer: around a value, likewise.
        trim: one line break at either end of a value belongs to the tags.
    """

    function_opener: ClassVar[str]
    function_closer: ClassVar[str]
    parameter_opener: ClassVar[str]
    parameter_closer: ClassVar[str]
    trim: ClassVar[bool] = False

    def __init__(self, tools: ToolSet = ANY_TOOLS, *, make_id: Callable[[int, str], str] | None = None) -> None:
        super().__init__(tools, make_id=make_id)
        self._function = markers_of((self.function_opener,))
        self._inside = markers_of((self.parameter_opener, self.function_closer))
        self._parameter_closer = markers_of((self.parameter_closer,))

    def _calls(self, opener: str) -> Wait[None]:
        reader = self._reader
        if opener != self.function_opener:
            yield from reader.run(SPACE, MAX_GAP)
            if (yield from reader.literal(self._function)) is None:
                raise NotACall
        while True:
            yield from self._one_call()
            yield from reader.run(SPACE, MAX_GAP)
            if (yield from reader.literal(self._function)) is None:
                break
            reader.hold(len(self.function_opener))
        yield from reader.literal(self._closers, unfinished=True)

    def _one_call(self) -> Wait[None]:
        name, _ = name_in_tag((yield from tag_head(self._reader)))
        if not self._tools.knows(name):
            raise NotACall
        schema = self._tools.parameters(name)
        first = True
        while True:
            yield from self._reader.run(SPACE, MAX_GAP)
            tag = yield from self._reader.literal(self._inside)
            if tag is None:
                raise NotACall if (yield from self._reader.more()) else Truncated
            if tag == self.function_closer:
                break
            if not first:
                self._reader.hold(len(tag))
            key, rest = name_in_tag((yield from tag_head(self._reader)))
            if first:
                self._start_call(name)
            self._reader.release()
            self._argue(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            types = _types_of_tag(rest) or types_of(schema, key)
            yield from read_value(self._reader, self._argue, self._parameter_closer, types, trim=self.trim)
            first = False
        if first:
            self._start_call(name)
        self._argue("{}" if first else "}")
        self._end_call()


def tag_head(reader: Reader) -> Wait[str]:
    """The text up to the next ">", which is consumed."""
    written: list[str] = []
    for _ in range(MAX_NAME):
        char = yield from reader.need()
        reader.at += 1
        if char == ">":
            return "".join(written)
        written.append(char)
    raise NotACall


def name_in_tag(head: str) -> tuple[str, str]:
    """The name, in quotes or bare, and the text behind it."""
    if head.startswith('"'):
        name, _, rest = head[1:].partition('"')
        return name, rest
    return head.strip(), ""


def _types_of_tag(attributes: str) -> frozenset[str]:
    """The value's types, if the tag tells: string="true", or "false" for JSON of any kind."""
    if 'string="true"' in attributes:
        return frozenset({"string"})
    return frozenset({"json"}) if 'string="false"' in attributes else frozenset()


# ---------------------------------------------------------------------------------------------------------------
# values


def read_value(reader: Reader, write: Write, closer: Markers, types: frozenset[str], *, trim: bool) -> Wait[None]:
    """Consume a bare value and what closes it; `write` gets it as JSON.

    Args:
        reader: behind the opening tag.
        write: gets a string while it arrives, anything else at its end.
        closer: the closing tag.
        types: what the schema allows; empty if it does not say.
        trim: leave out one line break at either end.

    Raises:
        Truncated: there is no closing tag; the text of a value that was not written is held.
    """
    if types <= {"string"}:
        write('"')
        inside = _Inside(write, trim=trim)
        if (yield from reader.until(closer, inside.write)) is None:
            raise Truncated
        write('"')
        return
    reader.hold()
    written: list[str] = []
    if (yield from reader.until(closer, written.append)) is None:
        raise Truncated
    reader.release()
    text = "".join(written)
    write(to_json(text.removeprefix("\n").removesuffix("\n") if trim else text, types))


class _Inside:
    """Text becomes the inside of a JSON string; a line break at either end can be left out."""

    def __init__(self, write: Write, *, trim: bool) -> None:
        self._write = write
        self._trim = trim
        self._at_start = trim
        self._break = False

    def write(self, text: str) -> None:
        if self._at_start:
            self._at_start = False
            text = text.removeprefix("\n")
        if not text:
            return
        if self._break:
            self._write("\\n")
        self._break = self._trim and text.endswith("\n")
        self._write(json.dumps(text[:-1] if self._break else text, ensure_ascii=False)[1:-1])


def to_json(text: str, types: frozenset[str]) -> str:
    """A bare value as JSON, by the types that its schema allows (none known: a string)."""
    if not types <= {"string", "null"} and "string" not in types:
        bare = text.strip().lower() if types & {"boolean", "null"} else text
        value = whole_json(text) or whole_literal(text) or whole_json(bare)
        if value is not None:
            return value
    if "null" in types and text.strip() in ("null", "None"):
        return "null"
    return json.dumps(text, ensure_ascii=False)


def types_of(schema: Mapping[str, Any], key: str) -> frozenset[str]:
    """The JSON types that a function's schema allows for a parameter; empty if it does not say."""
    properties = schema.get("properties")
    todo: list[object] = [properties.get(key)] if isinstance(properties, Mapping) else []
    types: set[str] = set()
    for _ in range(_MAX_SCHEMAS):  # references may go round in circles
        if not todo:
            break
        one = todo.pop()
        if isinstance(one, Mapping):
            todo += _look(one, schema, types)
    return frozenset(types)


def _look(schema: Mapping[str, Any], root: Mapping[str, Any], types: set[str]) -> list[object]:
    """Add the types that a schema names itself; the schemas that it leaves them to."""
    named = schema.get("type")
    if isinstance(named, (str, list)):
        types.update(name for name in ([named] if isinstance(named, str) else named) if isinstance(name, str))
    elif isinstance(schema.get("$ref"), str):
        return [_resolve(schema["$ref"], root)]
    elif "const" in schema:
        types |= _types_of_values([schema["const"]])
    elif isinstance(schema.get("enum"), list):
        types |= _types_of_values(schema["enum"])
    else:
        return [option for union in _UNIONS if isinstance(schema.get(union), list) for option in schema[union]]
    return []


def _types_of_values(values: Iterable[object]) -> frozenset[str]:
    return frozenset(_JSON_TYPES[type(value)] for value in values if type(value) in _JSON_TYPES)


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    """What a local JSON pointer such as #/$defs/Name points to; None if nothing."""
    target: object = root
    for step in reference.removeprefix("#").split("/")[1:]:
        target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
    return target
