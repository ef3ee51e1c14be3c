"""From a request's wish to the grammar that the engine is given. Sizes and shapes are checked here, before anything
runs; whether the grammar makes sense is found where it is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from quire.errors import RequestError
from quire.frontend.parsers.protocol import Thoughts
from quire.frontend.tags import TagWriter
from quire.frontend.tokenizer import Tokenizer
from quire.messages import Grammar, ReasoningGate
from quire.structured import StructuredOutputsParams

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 48
MAX_SCHEMA_NODES = 4000
MAX_ENUM = 1000
MAX_REGEX_BYTES = 1 << 10
MAX_GRAMMAR_BYTES = 32 << 10
MAX_CHOICES = 256
MAX_CHOICE_BYTES = 1 << 10

ANY_OBJECT = {"type": "object"}
SPACE = r" |\r?\n[ \t]{0,40}"
"""White space in JSON: a blank, or a new line with its indentation. Without a bound a model may write nothing else."""


class HeldTo(NamedTuple):
    """A grammar, and the request's field that asks for it."""

    grammar: Grammar
    param: str


def grammar_of(wanted: StructuredOutputsParams, tokenizer: Tokenizer) -> Grammar:
    """The grammar of an answer.

    Raises:
        RequestError: it is too large, or not of the right shape.
    """
    kind, source = wanted.kind, wanted.source
    space = None if wanted.disable_any_whitespace else wanted.whitespace_pattern or SPACE
    if wanted.whitespace_pattern is not None:
        _check_bytes(source, "whitespace_pattern", wanted.whitespace_pattern, MAX_REGEX_BYTES)
    if kind == "json_object":
        return Grammar("json", _text(ANY_OBJECT), space)
    if kind == "json":
        schema = checked_schema(wanted.json, source)
        return Grammar("json", _text(_closed(schema) if wanted.disable_additional_properties else schema), space)
    if kind == "choice":
        return Grammar("choice", _text(_checked_choices(wanted.choice or [], source)))
    if kind == "structural_tag":
        writer = TagWriter(tokenizer, space, lambda schema: checked_schema(schema, source))
        text = writer.write(_object(wanted.structural_tag, "structural_tag", source), source)
        _check_bytes(source, "structural_tag", text, MAX_SCHEMA_BYTES)
        return Grammar("tags", text)
    text = getattr(wanted, kind)
    _check_bytes(source, kind, text, MAX_REGEX_BYTES if kind == "regex" else MAX_GRAMMAR_BYTES)
    return Grammar("regex" if kind == "regex" else "grammar", text)


def grammar_of_schema(schema: Mapping[str, Any], source: str, *, lenient: bool) -> Grammar:
    """The grammar of forced calls."""
    return Grammar("json", _text(checked_schema(dict(schema), source)), SPACE, lenient)


def checked_schema(schema: Any, source: str) -> Any:
    """A JSON schema within the limits, as an object.

    Raises:
        RequestError: it is none, or too large.
    """
    if isinstance(schema, bool):
        return schema
    schema = _object(schema, "the JSON schema", source)
    num_nodes, depth, level = 0, 0, [schema]
    while level:
        depth, num_nodes = depth + 1, num_nodes + len(level)
        if depth > MAX_SCHEMA_DEPTH:
            raise _too_much(source, "nested levels of JSON", f"more than {MAX_SCHEMA_DEPTH}", MAX_SCHEMA_DEPTH)
        if num_nodes > MAX_SCHEMA_NODES:
            raise _too_much(source, "objects and lists", num_nodes, MAX_SCHEMA_NODES)
        for node in level:
            options = node.get("enum") if isinstance(node, dict) else None
            if isinstance(options, list) and len(options) > MAX_ENUM:
                raise _too_much(source, "values in one enum", len(options), MAX_ENUM)
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    num_bytes = len(_text(schema).encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_SCHEMA_BYTES:
        raise _too_much(source, "bytes", num_bytes, MAX_SCHEMA_BYTES)
    return schema


def gate_of(thoughts: Thoughts, tokenizer: Tokenizer) -> ReasoningGate | None:
    """Where the thoughts of an answer are, in tokens; None if the grammar holds from the first token on."""
    ends = [ids for closer in thoughts.closers for ids in _spellings(closer, tokenizer)]
    begins = [tokenizer.encode(opener, add_special_tokens=False) for opener in thoughts.openers]
    openers = [ids[0] for ids in begins if ids and tokenizer.is_added(ids[0])]
    if not ends or not (thoughts.inside or openers):
        return None
    return ReasoningGate(thoughts.inside, list(dict.fromkeys(openers)), ends)


def _spellings(text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of a tag; where it is no token of its own, as it may run together with line breaks around it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids and tokenizer.is_added(ids[0]) and tokenizer.is_added(ids[-1]):
        return [ids]
    forms = (before + text + behind for before in ("", "\n") for behind in ("", "\n", "\n\n"))
    found = (tokenizer.encode(form, add_special_tokens=False) for form in forms)
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in found if ids)]


def _checked_choices(choices: Sequence[str], source: str) -> list[str]:
    if len(choices) > MAX_CHOICES:
        raise _too_much(source, "choices", len(choices), MAX_CHOICES)
    for choice in choices:
        _check_bytes(source, "a choice", choice, MAX_CHOICE_BYTES)
    return list(dict.fromkeys(choices))


def _closed(schema: Any) -> Any:
    """The schema without members that it does not name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in ("enum", "const", "default") else _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
        closed["additionalProperties"] = False
    return closed


def _object(value: Any, what: str, source: str) -> dict[str, Any]:
    if isinstance(value, (str, bytes)):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise RequestError(f"{source}: {what} is not JSON: {error}.", param=source) from None
    if not isinstance(value, dict):
        raise RequestError(f"{source}: {what} must be an object, got {type(value).__name__}.", param=source)
    return value


def _text(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, UnicodeError, RecursionError) as error:
        raise RequestError(f"The schema cannot be written as JSON: {error}.", param="structured_outputs") from None


def _check_bytes(source: str, what: str, text: str, limit: int) -> None:
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > limit:
        raise RequestError(f"{source}: {what} may have {limit} bytes, got {num_bytes}.", param=source)


def _too_much(source: str, what: str, seen: object, limit: int) -> RequestError:
    return RequestError(f"{source}: a schema may have {limit} {what}, got {seen}.", param=source)
