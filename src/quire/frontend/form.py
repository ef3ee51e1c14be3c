"""The fields of a request that say what its answer must look like, in their several spellings.

| field                | becomes                                                   |
|----------------------|-----------------------------------------------------------|
| response_format      | text, json_object, json_schema, structural_tag            |
| structured_outputs   | as in `StructuredOutputsParams`                           |
| guided_json, …       | the same, under their old names; answered with a notice   |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from quire.errors import RequestError
from quire.structured import StructuredOutputsParams, structured_outputs_of

OLD_NAMES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
SPACE = "guided_whitespace_pattern"
FORMAT = "response_format"


class Fields(Protocol):
    """A request that has the fields above, None where absent."""

    response_format: dict[str, Any] | None
    structured_outputs: dict[str, Any] | None
    guided_json: Any
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None
    guided_whitespace_pattern: str | None


def wanted_form(fields: Fields) -> StructuredOutputsParams | None:
    """What the answer must look like; None if it is free.

    Raises:
        RequestError: a field is not as it should be, or more than one asks for a form.
    """
    found = [
        form
        for form in (_of_format(fields.response_format), _of_structured(fields.structured_outputs), *_of_old(fields))
        if form is not None
    ]
    if len(found) > 1:
        first, second = found[0].source, found[1].source
        raise RequestError(f"{first} and {second} both say what the answer must look like; give one.", param=second)
    if not found and fields.guided_whitespace_pattern is not None:
        raise RequestError(f"{SPACE} needs guided_json.", param=SPACE)
    return found[0] if found else None


def notices_of_form(fields: Fields) -> list[str]:
    """Sentences about spellings that have newer ones."""
    return [
        f"{name} is an old name of structured_outputs.{new}."
        for name, new in {**OLD_NAMES, SPACE: "whitespace_pattern"}.items()
        if getattr(fields, name) is not None
    ]


def _of_structured(value: dict[str, Any] | None) -> StructuredOutputsParams | None:
    return structured_outputs_of(value) if value else None


def _of_old(fields: Fields) -> list[StructuredOutputsParams]:
    found = []
    for name, new in OLD_NAMES.items():
        value = getattr(fields, name)
        if value is not None:
            space = fields.guided_whitespace_pattern if new == "json" else None
            found.append(StructuredOutputsParams(**{new: value}, whitespace_pattern=space, source=name))
    return found


# ---- response_format -------------------------------------------------------------------------------------------------


def _of_format(value: dict[str, Any] | None) -> StructuredOutputsParams | None:
    if value is None:
        return None
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        shown = repr(kind)[:64]
        raise RequestError(f"{FORMAT}.type must be one of {', '.join(_FORMATS)}; got {shown}.", param=FORMAT)
    return _FORMATS[kind](value)


def _json_schema(value: Mapping[str, Any]) -> StructuredOutputsParams:
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        raise RequestError(f"{FORMAT}.json_schema must be an object with name and schema.", param=FORMAT)
    schema = inner.get("schema", inner.get("json_schema"))
    if not isinstance(schema, (dict, bool)):
        raise RequestError(f"{FORMAT}.json_schema.schema must be a JSON schema.", param=FORMAT)
    if inner.get("strict") not in (None, True, False):
        raise RequestError(f"{FORMAT}.json_schema.strict must be true or false.", param=FORMAT)
    return StructuredOutputsParams(json=schema, source=FORMAT)


_FORMATS: dict[str, Callable[[Mapping[str, Any]], StructuredOutputsParams | None]] = {
    "text": lambda value: None,
    "json_object": lambda value: StructuredOutputsParams(json_object=True, source=FORMAT),
    "json_schema": _json_schema,
    "structural_tag": lambda value: StructuredOutputsParams(structural_tag=dict(value), source=FORMAT),
}
