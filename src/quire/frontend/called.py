"""Answers with tools: what grammar holds them, so that calls have the arguments that their functions ask for.

| tool_choice       | the answer                                                                              |
|-------------------|-----------------------------------------------------------------------------------------|
| required, a name  | is a call, or a list of calls, in JSON                                                  |
| auto              | is free; where a function is `strict`, a call that begins is held to its schema         |
| auto and a form   | is of that form, or calls                                                               |

The last two need to know how the model's family spells a call; where that cannot be held, the caller is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.frontend.parsers.choice import ToolPlan, arguments_schema
from quire.frontend.parsers.protocol import CallForm
from quire.frontend.parsers.tools import TOOL_PARSERS
from quire.frontend.service import TextService
from quire.frontend.structured import SPACE, HeldTo, checked_schema, grammar_of_schema
from quire.frontend.tags import TagWriter
from quire.messages import Grammar
from quire.structured import StructuredOutputsParams


def held_to_calls(
    plan: ToolPlan, wanted: StructuredOutputsParams | None, service: TextService, warnings: list[str]
) -> HeldTo | None:
    """The grammar of an answer that has to do with tools; None if they do not matter for it.

    Args:
        plan: of the request's tools.
        wanted: the form of the answer that the request asks for.
        service: knows the family's format.
        warnings: gets a sentence for what cannot be held.

    Raises:
        RequestError: a schema is too large.
    """
    strict = any(_is_strict(tool) for tool in plan.tools)
    if plan.schema is not None:
        lenient = not all(_is_strict(tool) for tool in plan.tools)
        return HeldTo(grammar_of_schema(plan.schema, "tool_choice", lenient=lenient), "tools")
    if plan.reader != "auto" or not (strict or wanted):
        return None
    form = TOOL_PARSERS[service.tool_parser].form if service.tool_parser else None
    if form is not None and (wanted is None or wanted.kind in ("json", "json_object")):
        return HeldTo(_auto(plan, form, wanted, service), "tools")
    if strict:
        warnings.append("tools: strict has no effect with the way in which this model writes its calls.")
    if wanted is not None and service.tool_parser is not None:
        warnings.append(f"tools cannot be called: {wanted.source} holds the whole answer of this model.")
    return None


def _auto(plan: ToolPlan, form: CallForm, wanted: StructuredOutputsParams | None, service: TextService) -> Grammar:
    writer = TagWriter(service.tokenizer, SPACE, lambda schema: checked_schema(schema, "tools"))
    lenient = TagWriter(service.tokenizer, SPACE, lambda schema: checked_schema(schema, "tools"), lenient=True)
    calls = []
    for tool in plan.tools:
        by = writer if _is_strict(tool) else lenient
        name = tool["function"]["name"]
        arguments = f"{by.schema(arguments_schema(tool))} {writer.text(form.end)}"
        calls.append((form.trigger, f"{form.name}{name}{form.arguments}", arguments))
    one = plan.max_calls == 1
    if wanted is None:
        return Grammar("tags", writer.grammar(writer.triggered(calls, only_first=one)))
    spelt = " | ".join(f"{writer.text(trigger + rest)} {arguments}" for trigger, rest, arguments in calls)
    several = f"({spelt})" if one else f"({spelt}) ({writer.text(chr(10))} ({spelt}))*"
    schema = {"type": "object"} if wanted.json_object else wanted.json
    return Grammar("tags", writer.grammar(f"{writer.schema(schema)} | {several}"))


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True
