"""One parser out of two: what reasoning is taken away, tool calls are read in the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from quire.errors import ConfigError
from quire.frontend.parsers.calls import ToolParser
from quire.frontend.parsers.choice import ToolPlan
from quire.frontend.parsers.protocol import Content, Event, Parser, Reasoning, Thoughts, ToolSet
from quire.frontend.parsers.reasoning import REASONING_PARSERS
from quire.frontend.parsers.tools import TOOL_PARSERS
from quire.frontend.parsers.tools.forced import NamedParser, RequiredParser

MakeId = Callable[[int, str], str]
T = TypeVar("T")


class PlainParser:
    """No tools, no reasoning: all of the text is content."""

    markers: tuple[str, ...] = ()

    def feed(self, text: str) -> list[Event]:
        """The text as it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """Nothing is ever left."""
        return []


class ComposedParser:
    """First the reasoning parser, then the tool parser on its content.

    Args:
        reasoning: fresh.
        tools: fresh.
        max_calls: later calls are left out; None for no limit.
    """

    def __init__(self, reasoning: Parser, tools: Parser, *, max_calls: int | None = None) -> None:
        self.markers = tuple(dict.fromkeys((*reasoning.markers, *tools.markers)))
        self._reasoning = reasoning
        self._tools = tools
        self._max_calls = max_calls

    def feed(self, text: str) -> list[Event]:
        """What these characters make certain."""
        return self._through_tools(self._reasoning.feed(text))

    def finish(self) -> list[Event]:
        """The rest; no more text will come."""
        return [*self._through_tools(self._reasoning.finish()), *self._allowed(self._tools.finish())]

    def _through_tools(self, events: list[Event]) -> list[Event]:
        found: list[Event] = []
        for event in events:
            if type(event) is Content:
                found += self._allowed(self._tools.feed(event.text))
            else:
                found.append(event)
        return found

    def _allowed(self, events: list[Event]) -> list[Event]:
        if self._max_calls is None:
            return events
        limit = self._max_calls
        return [event for event in events if isinstance(event, (Content, Reasoning)) or event.index < limit]


def make_parser(
    plan: ToolPlan,
    *,
    tool_parser: str | None,
    reasoning_parser: str | None,
    prompt: str | None = None,
    constrained: bool = True,
    make_id: MakeId | None = None,
) -> Parser:
    """A fresh parser for one output of a request.

    Args:
        plan: of the request's tools.
        tool_parser: a name in TOOL_PARSERS, or None.
        reasoning_parser: a name in REASONING_PARSERS, or None.
        prompt: the text that the model continues, or its end.
        constrained: the answer is held to `plan.schema`; else forced calls are read in the family's own format.
        make_id: from index and name to a call's id; by default as the family has them.

    Raises:
        ConfigError: there is no parser of that name.
    """
    reasoning: Parser = PlainParser()
    if reasoning_parser is not None:
        reasoning = find("reasoning", reasoning_parser, REASONING_PARSERS)(prompt)
    tools = _tool_parser(plan, tool_parser, constrained, make_id)
    return reasoning if tools is None else ComposedParser(reasoning, tools, max_calls=plan.max_calls)


def _tool_parser(plan: ToolPlan, name: str | None, constrained: bool, make_id: MakeId | None) -> ToolParser | None:
    """Which one reads the calls; None if there can be none."""
    family = None if name is None else find("tool call", name, TOOL_PARSERS)
    make_id = make_id or (family.new_id if family else None)
    tools = ToolSet(plan.tools)
    if plan.reader == "none":
        return None
    if constrained and plan.reader == "named":
        return NamedParser(plan.name, make_id=make_id)
    if constrained and plan.reader == "required":
        return RequiredParser(tools, make_id=make_id)
    return family(tools, make_id=make_id) if family else None


def find_thoughts(reasoning_parser: str | None, prompt: str | None) -> Thoughts:
    """Where the thoughts are in an answer to this prompt; none without a parser."""
    if reasoning_parser is None:
        return Thoughts()
    return find("reasoning", reasoning_parser, REASONING_PARSERS)(prompt).thoughts


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The row of that name.

    Raises:
        ConfigError: with the names that exist.
    """
    if name not in table:
        raise ConfigError(f"There is no {kind} parser {name!r}; known are {', '.join(sorted(table))}.")
    return table[name]
