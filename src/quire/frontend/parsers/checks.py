"""Checks of `tools`, `tool_choice` and of calls in `messages`: whatever is wrong is named with its path, the value
seen and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import msgspec

from quire.errors import RequestError

MAX_TOOLS = 128
MAX_DESCRIPTION = 32_768
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NAME_RULE = "1..128 letters, digits, '_', '-', '.', ':' and '/'"
_MODES = ("none", "auto", "required")
_CHOICES = '\'none\', \'auto\', \'required\' or {"type": "function", "function": {"name": ...}}'

Mode = Literal["none", "auto", "required", "named"]


class ToolChoice(msgspec.Struct, frozen=True):
    """What tool_choice asks for; `names`: the functions that may be called, None for all."""

    mode: Mode
    names: tuple[str, ...] | None = None


def check_tools(tools: object) -> tuple[Mapping[str, Any], ...]:
    """The functions of a request; none if the field is absent.

    Raises:
        RequestError: an entry is wrong.
    """
    if tools is None:
        return ()
    if not isinstance(tools, (list, tuple)):
        _refuse("tools", "tools", tools, "a list of functions")
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"tools takes at most {MAX_TOOLS} entries, got {len(tools)}.", param="tools")
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        name = _check_tool(tool, f"tools[{i}]")
        if name in seen:
            raise RequestError(
                f"tools[{i}].function.name is {name!r} again; each function needs a name of its own.", param="tools"
            )
        seen.add(name)
    return tuple(tools)


def _check_tool(tool: object, where: str) -> str:
    if not isinstance(tool, Mapping):
        _refuse("tools", where, tool, "an object")
    if tool.get("type", "function") != "function":
        _refuse("tools", f"{where}.type", tool["type"], "'function'")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        _refuse("tools", f"{where}.function", function, "an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse("tools", f"{where}.function.name", name, _NAME_RULE)
    description = function.get("description")
    if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION):
        _refuse("tools", f"{where}.function.description", description, f"text of at most {MAX_DESCRIPTION} characters")
    if function.get("strict") not in (None, True, False):
        _refuse("tools", f"{where}.function.strict", function["strict"], "true or false")
    _check_parameters(function.get("parameters"), f"{where}.function.parameters")
    return name


def _check_parameters(parameters: object, where: str) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        _refuse("tools", where, parameters, "a JSON schema of an object")
    if parameters.get("type", "object") != "object":
        _refuse("tools", f"{where}.type", parameters["type"], "'object'")
    properties = parameters.get("properties")
    if properties is not None and not isinstance(properties, Mapping):
        _refuse("tools", f"{where}.properties", properties, "an object with a schema for each name")


def check_tool_choice(choice: object, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """What is asked for: auto where there are tools and the field is absent.

    Raises:
        RequestError: it is no choice, or asks for functions that are not there.
    """
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    if isinstance(choice, str) and choice in _MODES:
        if choice == "required" and not tools:
            raise RequestError("tool_choice is 'required', but tools is empty.", param="tool_choice")
        mode: Mode = "required" if choice == "required" else "auto" if choice == "auto" and tools else "none"
        return ToolChoice(mode)
    if not isinstance(choice, Mapping):
        _refuse("tool_choice", "tool_choice", choice, _CHOICES)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools", choice), tools)
    if choice.get("type", "function") != "function":
        _refuse("tool_choice", "tool_choice.type", choice["type"], "'function'")
    return ToolChoice("named", (_chosen(choice, "tool_choice", tools),))


def _allowed(allowed: object, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """{"mode": "auto" | "required", "tools": [{"type": "function", "function": {"name": ...}}, …]}."""
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping):
        _refuse("tool_choice", where, allowed, "an object with mode and tools")
    mode, chosen = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        _refuse("tool_choice", f"{where}.mode", mode, "'auto' or 'required'")
    if not isinstance(chosen, (list, tuple)) or not chosen:
        _refuse("tool_choice", f"{where}.tools", chosen, "a list of at least one function")
    names = tuple(_chosen(entry, f"{where}.tools[{i}]", tools) for i, entry in enumerate(chosen))
    return ToolChoice("required" if mode == "required" else "auto", names)


def _chosen(choice: object, where: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """The name in a choice; the Responses API has it one level higher."""
    function = choice.get("function", choice) if isinstance(choice, Mapping) else choice
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        _refuse("tool_choice", f"{where}.function.name", name, "the name of a function in tools")
    known = [tool["function"]["name"] for tool in tools]
    if name not in known:
        allowed = f"one of {', '.join(map(repr, known))}" if known else "a function in tools, which is empty"
        _refuse("tool_choice", f"{where}.function.name", name, allowed)
    return name


# ---------------------------------------------------------------------------------------------------------------
# messages


def check_calls_in_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Calls that an assistant's message repeats, and the results that tool messages bring.

    Raises:
        RequestError: one of them is not in order.
    """
    for i, message in enumerate(messages):
        where, calls = f"messages[{i}]", message.get("tool_calls")
        if calls is not None:
            if message.get("role") != "assistant":
                _refuse("messages", f"{where}.role", message.get("role"), "'assistant' where there are tool_calls")
            if not isinstance(calls, (list, tuple)):
                _refuse("messages", f"{where}.tool_calls", calls, "a list of calls")
            for j, call in enumerate(calls):
                _check_call(call, f"{where}.tool_calls[{j}]")
        call_id = message.get("tool_call_id")
        if call_id is not None and (not isinstance(call_id, str) or message.get("role") != "tool"):
            _refuse("messages", f"{where}.tool_call_id", call_id, "text, in messages with the role 'tool'")


def _check_call(call: object, where: str) -> None:
    if not isinstance(call, Mapping):
        _refuse("messages", where, call, "an object with id, type and function")
    if call.get("type", "function") != "function":
        _refuse("messages", f"{where}.type", call["type"], "'function'")
    if not isinstance(call.get("id", ""), str):
        _refuse("messages", f"{where}.id", call["id"], "text")
    function = call.get("function")
    if not isinstance(function, Mapping):
        _refuse("messages", f"{where}.function", function, "an object with name and arguments")
    name = function.get("name")
    if not isinstance(name, str) or not name or len(name) > 256:
        _refuse("messages", f"{where}.function.name", name, "text of 1..256 characters")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, Mapping) and not _is_object(arguments):
        _refuse("messages", f"{where}.function.arguments", arguments, "a JSON object as text, such as '{\"a\": 1}'")


def _is_object(arguments: object) -> bool:
    if not isinstance(arguments, str):
        return False
    try:
        return not arguments.strip() or isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False


def _refuse(param: str, where: str, value: object, allowed: str) -> NoReturn:
    raise RequestError(f"{where} must be {allowed}; got {_shown(value)}.", param=param)


def _shown(value: object) -> str:
    """A value as JSON, in ASCII and short."""
    if value is None:
        return "nothing"
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:80] + "..."
