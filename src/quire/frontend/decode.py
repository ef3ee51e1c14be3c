"""From the bytes of a request body to a typed request, or a RequestError that names the field.

    body ── strict JSON (no NaN, depth, names) ── fields we know but lack ── types ── counts ──► request + warnings

Nothing is ignored in silence: a field that would change the answer and is not offered is an error; one that cannot
change it, or that nobody knows, is named in the response's warnings.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from quire.config import did_you_mean
from quire.errors import RequestError
from quire.frontend.aliases import with_new_names
from quire.frontend.fields import ABSENT, INSTEAD, NOT_OFFERED, known_but_absent

if TYPE_CHECKING:
    from quire.frontend.validate import Request

MAX_DEPTH = 64
MAX_WARNINGS = 20
_R = TypeVar("_R", bound="Request")


def decode(body: bytes, kind: type[_R], *, strict: bool = False) -> tuple[_R, list[str]]:
    """A checked request, and warnings about fields without effect; each begins with the field's name.

    Args:
        body: JSON.
        kind: the type of the route's requests.
        strict: a field without effect is an error.

    Raises:
        RequestError: anything that cannot be served as written.
    """
    values = {name: value for name, value in _json_object(body).items() if value is not None}
    with_new_names(values, kind.__struct_fields__)
    warnings = _sort_out(values, kind)
    refuse_if(strict, warnings)
    try:
        request = msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    request.check()
    adjusted = request.adjust()
    refuse_if(strict, adjusted)
    return request, warnings + adjusted


def refuse_if(strict: bool, warnings: list[str]) -> None:
    """Turn the first warning into an error.

    Raises:
        RequestError: names the field.
    """
    if strict and warnings:
        field = warnings[0].split(" ", 1)[0]
        raise RequestError(
            f"{warnings[0]} This server runs with --strict.", param=field, code="parameter_without_effect"
        )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(body, error) from None
    except (RecursionError, ValueError):
        raise RequestError("The body is not JSON that can be taken: nested or numbers too long.") from None
    if not isinstance(values, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_json")
    num_names = check_depth(values)
    if num_names != _STRING.sub(b"", without_pictures(body)).count(b":"):
        raise RequestError(f"{_given_twice(body)} is given twice.", code="invalid_json")
    return values


_NOT_A_NUMBER = re.compile(
    rb'"(\w{1,64})"\s*:\s*(?:\[\s*)?(-?(?:NaN|Infinity)\b|-?\d{1,400}(?:\.\d+)?[eE]\+?\d{3,}|-?\d{20,400})'
)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
"""A text in valid JSON; outside of these each colon stands after a name."""


def _not_json(body: bytes, error: Exception) -> RequestError:
    """Numbers that JSON cannot hold come from programs, in one field: name it."""
    found = _NOT_A_NUMBER.search(body)
    if found is None:
        return RequestError(f"The body is not valid JSON: {error}.", code="invalid_json")
    name, value = (group.decode()[:64] for group in found.groups())
    return RequestError(f"{name} must be a finite number, got {value}.", param=name, code="invalid_json")


_DATA_URL = b'"data:'
_LONG_URL = 4096


def without_pictures(body: bytes) -> bytes:
    """Valid JSON without its long data: URLs, which a regular expression would take long to step over.

    A quote with `data:` behind it, and no backslash before it, begins a text. That one ends at the next quote, if there
    is no backslash in it.
    """
    kept, done, place = [], 0, body.find(_DATA_URL)
    while place >= 0:
        end = body.find(b'"', place + 1)
        if end - place > _LONG_URL and body[place - 1 : place] != b"\\" and body.find(b"\\", place, end) < 0:
            kept.append(body[done:place] + b'"')
            done = end
        place = body.find(_DATA_URL, end + 1) if end >= 0 else -1
    return b"".join([*kept, body[done:]]) if kept else body


def _given_twice(body: bytes) -> str:
    """The first name that an object has twice."""

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise KeyError(name)
            seen.add(name)

    try:
        json.loads(body, object_pairs_hook=look)
    except KeyError as error:
        return printable(error.args[0])
    return "A name"


def check_depth(values: Any) -> int:
    """Count the names in all objects.

    Raises:
        RequestError: it is nested too deeply.
    """
    level, depth, num_names = [values], 0, 0
    while level:
        depth += 1
        num_names += sum(len(parent) for parent in level if type(parent) is dict)
        if depth > MAX_DEPTH:
            raise RequestError(f"The JSON body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
    return num_names


def _sort_out(values: dict[str, Any], kind: type[Request]) -> list[str]:
    """Take out fields that the request type does not have; those that would matter are an error."""
    known = kind.__struct_fields__
    warnings: list[str] = []
    for name in [name for name in values if name not in known]:
        value = values.pop(name)
        absent = known_but_absent(name, value)
        if absent == NOT_OFFERED:
            what = f"use {INSTEAD[name]}" if name in INSTEAD else "leave it out"
            raise RequestError(
                f"{name} is not offered by this server; {what}.", param=name, code="unsupported_parameter"
            )
        if absent == ABSENT:
            near = did_you_mean(name, set(known)) if len(warnings) < MAX_WARNINGS and len(name) <= 64 else ""
            warnings.append(f"{printable(name)} has no effect here.{near}")
    if len(warnings) > MAX_WARNINGS:
        warnings[MAX_WARNINGS:] = [f"{len(warnings) - MAX_WARNINGS} more fields have no effect here."]
    return warnings


def printable(name: str) -> str:
    """A field's name, as ASCII on one line."""
    short = name if len(name) <= 64 else name[:64] + "..."
    return short.encode("unicode_escape").decode("ascii")


_AT = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _explain(message: str) -> RequestError:
    """A type error in our words: the path, and what was expected."""
    missing = _MISSING.match(message)
    if missing:
        return RequestError(f"{missing.group(1)} is missing.", param=missing.group(1), code="missing_parameter")
    match = _AT.match(message)
    reason, path = (match.group(1), match.group(2)) if match else (message, None)
    reason = reason.replace("`", "").replace(" | null", "")
    reason = reason[:1].lower() + reason[1:]
    param = re.split(r"[.\[]", path)[0] if path else None
    return RequestError(f"{path or 'body'}: {reason}.", param=param or None, code="invalid_type")
