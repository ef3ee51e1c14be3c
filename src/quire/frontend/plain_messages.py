"""Chat messages as templates expect them."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.errors import RequestError
from quire.frontend.aliases import with_both_names
from quire.frontend.decode import check_depth, printable
from quire.frontend.media.parts import is_picture, source_of


def plain_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as templates expect it: content as one text, or as parts where there are pictures among them; arguments
    of tool calls as objects."""
    where = f"messages[{index}]"
    role = message.get("role")
    if not isinstance(role, str) or not role or len(role) > 64:
        raise RequestError(f"{where}.role must be a text such as 'user'.", param="messages")
    plain = {**with_both_names(message), "content": _plain_content(message.get("content"), where)}
    if plain["content"] is None and not message.get("tool_calls"):
        raise RequestError(f"{where}.content must be text or a list of text parts.", param="messages")
    if message.get("tool_calls") is not None:
        plain["tool_calls"] = _plain_calls(message["tool_calls"], where)
    return plain


def _plain_content(content: Any, where: str) -> str | list[dict[str, Any]] | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be text or a list of text parts.", param="messages")
    parts: list[dict[str, Any]] = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if is_picture(part):
            source = source_of(part, f"{where}.content[{i}]")
            if not isinstance(source.data, str):
                raise RequestError(f"{source.where} must be a data: URL.", param="messages", code="invalid_picture")
            parts.append({"type": "image", "source": source})
            continue
        if kind != "text":
            shown = printable(kind) if isinstance(kind, str) else "?"
            raise RequestError(
                f"{where}.content[{i}] has type {shown!r}; parts are of type 'text' or 'image_url'.",
                param="messages",
                code="unsupported_content",
            )
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}.content[{i}].text must be text.", param="messages")
        parts.append({"type": "text", "text": part["text"]})
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _plain_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RequestError(f"{where}.tool_calls must be a list of objects.", param="messages")
    return [_plain_call(call) for call in calls]


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates want a tool call's arguments as an object; OpenAI's API carries them as JSON in a string."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str):
        return call
    try:
        parsed = msgspec.json.decode(arguments.encode() or b"{}")
        check_depth([parsed])
    except (msgspec.DecodeError, RecursionError, ValueError, RequestError):
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(function, dict) else call
