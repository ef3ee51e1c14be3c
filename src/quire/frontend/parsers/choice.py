"""What `tools`, `tool_choice` and `parallel_tool_calls` mean for one answer: a plan, made by pure functions.

| tool_choice      | the answer is held to                                  | it is read by               |
|------------------|--------------------------------------------------------|-----------------------------|
| none             | nothing                                                | nobody                      |
| auto             | nothing                                                | the family's parser         |
| required         | a list of {"name": …, "parameters": …}, at least one   | `RequiredParser`            |
| {"function": …}  | the function's own schema                              | `NamedParser`               |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import msgspec

from quire.frontend.parsers.checks import check_tool_choice, check_tools

Tool = Mapping[str, Any]
ToolReader = Literal["none", "auto", "required", "named"]

_DEFINITIONS = ("$defs", "definitions")
_NOT_SCHEMAS = frozenset({"const", "enum", "default", "examples"})


class ToolPlan(msgspec.Struct, frozen=True):
    """How the calls of one answer come about.

    Attributes:
        reader: who reads the answer, see above.
        tools: those that may be called.
        schema: JSON schema of the answer (behind the reasoning, if there is any); None if it is free.
        name: the function, for `named`.
        max_calls: most calls; None for no limit.
    """

    reader: ToolReader = "none"
    tools: tuple[Tool, ...] = ()
    schema: dict[str, Any] | None = None
    name: str = ""
    max_calls: int | None = None


NO_TOOLS = ToolPlan()


def plan_tools(tools: object = None, tool_choice: object = None, parallel_tool_calls: bool = True) -> ToolPlan:
    """The plan of a request; the arguments are its fields as they came, None where absent.

    Raises:
        RequestError: a field is wrong.
    """
    offered = check_tools(tools)
    choice = check_tool_choice(tool_choice, offered)
    allowed = tuple(tool for tool in offered if choice.names is None or tool["function"]["name"] in choice.names)
    max_calls = None if parallel_tool_calls else 1
    if choice.mode == "none":
        return NO_TOOLS
    if choice.mode == "auto":
        return ToolPlan("auto", allowed, None, "", max_calls)
    if choice.mode == "required":
        return ToolPlan("required", allowed, required_schema(allowed, max_calls=max_calls), "", max_calls)
    (tool,) = allowed
    return ToolPlan("named", allowed, arguments_schema(tool), tool["function"]["name"], 1)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The JSON schema of a function's arguments; an object in any case."""
    schema = deepcopy(dict(tool["function"].get("parameters") or {}))
    return {"type": "object", **schema} if "type" not in schema else schema


def required_schema(
    tools: Sequence[Tool], *, max_calls: int | None = None, arguments_key: str = "parameters"
) -> dict[str, Any]:
    """The JSON schema of a list of calls of these functions, at least one.

    Definitions inside a function's schema move to the root under names of their own, since references count from
    there.
    """
    definitions: dict[str, Any] = {}
    options = []
    for i, tool in enumerate(tools):
        arguments = arguments_schema(tool)
        for where in _DEFINITIONS:
            for name, schema in dict(arguments.pop(where, None) or {}).items():
                definitions[f"{i}.{name}"] = _moved(schema, i)
        options.append(_call_schema(tool["function"]["name"], _moved(arguments, i), arguments_key))
    items = options[0] if len(options) == 1 else {"anyOf": options}
    schema = {"type": "array", "minItems": 1, "items": items}
    if max_calls is not None:
        schema["maxItems"] = max_calls
    if definitions or "#/$defs/" in str(items):
        schema["$defs"] = definitions
    return schema


def _call_schema(name: str, arguments: dict[str, Any], arguments_key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [name]}, arguments_key: arguments},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _moved(schema: Any, index: int) -> Any:
    """The same schema with references to its definitions as they are named at the root."""
    if isinstance(schema, list):
        return [_moved(item, index) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _NOT_SCHEMAS else _moved(value, index) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        for where in _DEFINITIONS:
            if reference.startswith(f"#/{where}/"):
                moved["$ref"] = f"#/$defs/{index}.{reference.removeprefix(f'#/{where}/')}"
    return moved
