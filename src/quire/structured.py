"""StructuredOutputsParams: what an answer must look like. Names are those of vLLM's class of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from quire.errors import RequestError

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class StructuredOutputsParams(msgspec.Struct, kw_only=True):
    """The form of an answer: exactly one of the first six.

    Args:
        json: a JSON schema, as a dict, as text, or a pydantic model.
        regex: a regular expression that the whole answer matches.
        choice: the answer is one of these texts.
        grammar: a context-free grammar, in Lark or in GBNF (`root ::= ...`).
        json_object: True for any JSON object.
        structural_tag: free text with structured parts between tags; see docs/structured-outputs.md.
        disable_any_whitespace: JSON without white space between its parts.
        disable_additional_properties: JSON objects have no members but those that the schema names.
        whitespace_pattern: a regular expression for the white space between the parts of JSON.
        source: the field to name in errors.

    Raises:
        RequestError: none of them, more than one, or one of a wrong type.
    """

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    source: str = "structured_outputs"

    def __post_init__(self) -> None:
        if self.json_object is False:
            self.json_object = None
        if hasattr(self.json, "model_json_schema"):
            self.json = self.json.model_json_schema()
        self.choice = list(self.choice) if isinstance(self.choice, tuple) else self.choice
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            seen = ", ".join(given) or "none"
            raise RequestError(f"{self.source} needs exactly one of {', '.join(KINDS)}; got {seen}.", param=self.source)
        kind = given[0]
        if not _FITS[kind](getattr(self, kind)):
            raise RequestError(f"{self.source}: {kind} must be {_TAKES[kind]}.", param=self.source)
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{self.source}: {name} must be true or false.", param=self.source)
        if self.whitespace_pattern is not None and not isinstance(self.whitespace_pattern, str):
            raise RequestError(f"{self.source}: whitespace_pattern must be text.", param=self.source)
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise RequestError(
                f"{self.source}: whitespace_pattern and disable_any_whitespace contradict each other.",
                param=self.source,
            )

    @property
    def kind(self) -> str:
        """Which of the six it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_FITS: dict[str, Callable[[Any], bool]] = {
    "json": lambda v: isinstance(v, (dict, bool)) or _is_text(v),
    "regex": _is_text,
    "grammar": _is_text,
    "choice": lambda v: isinstance(v, list) and bool(v) and all(isinstance(text, str) and text for text in v),
    "json_object": lambda v: v is True,
    "structural_tag": lambda v: isinstance(v, dict) or _is_text(v),
}
_TAKES = {
    "json": "a JSON schema: an object, or its text",
    "regex": "a regular expression that is not empty",
    "grammar": "a grammar that is not empty",
    "choice": "a list of at least one text, none of them empty",
    "json_object": "true or false",
    "structural_tag": "an object, or its text",
}


def structured_outputs_of(values: dict[str, Any], source: str = "structured_outputs") -> StructuredOutputsParams:
    """From a plain mapping, such as a request's field.

    Raises:
        RequestError: a name that there is not, or values that do not fit together.
    """
    known = [name for name in StructuredOutputsParams.__struct_fields__ if name != "source"]
    for name in values:
        if name not in known:
            raise RequestError(f"{source} has no {str(name)[:64]!r}; there are {', '.join(known)}.", param=source)
    given = {name: value for name, value in values.items() if value is not None}
    return StructuredOutputsParams(**given, source=source)
