"""What a parser of model output takes and gives. One interface for streamed and whole answers, so they cannot differ.

    text, in any pieces ── feed ──► events ── … ── finish ──► the last events

The order of events is the order of the text. Joined up, the texts of one kind (and of one call) are the same for
every way of cutting the text into pieces; a whole answer is one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text for the reader of the answer."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """Text that the model thought before it answered."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """A call of a known function begins; `index` counts from 0."""

    index: int
    id: str
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True):
    """The next characters of a call's arguments, which together are one JSON object."""

    index: int
    text: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """No more arguments will come. `complete`: they are a whole JSON object; else the model broke off or went wrong."""

    index: int
    complete: bool


Event = Content | Reasoning | ToolCallStart | ToolCallArguments | ToolCallEnd


class Thoughts(NamedTuple):
    """Where the thoughts of an answer are.

    Attributes:
        inside: the output begins with them.
        openers: texts that begin them.
        closers: texts that end them.
    """

    inside: bool = False
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()


class CallForm(NamedTuple):
    """How one call is spelt.

    Attributes:
        trigger: what cannot be anything but the beginning of a call.
        name: what stands between the trigger and the function's name.
        arguments: between the name and the arguments, which are JSON.
        end: behind the arguments.
    """

    trigger: str
    name: str
    arguments: str
    end: str


class Parser(Protocol):
    """Reads one output. Make a new one for each."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that detokenization must leave in the text for this parser to work."""

    def feed(self, text: str) -> list[Event]:
        """What these characters make certain. Never raises on any text; linear in its length."""

    def finish(self) -> list[Event]:
        """The rest: no more text will come. Call it once."""


class ToolSet:
    """The functions that a request offers. Read-only.

    Args:
        tools: as in the request, checked; None if they are unknown, and then every name is taken.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]] | None = None) -> None:
        self._parameters: dict[str, Mapping[str, Any]] | None = None
        if tools is not None:
            functions = [tool["function"] for tool in tools]
            self._parameters = {function["name"]: function.get("parameters") or {} for function in functions}

    def knows(self, name: str) -> bool:
        """Whether a call of this function is one."""
        return name.isprintable() and name != "" if self._parameters is None else name in self._parameters

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a function's arguments; empty if unknown."""
        return {} if self._parameters is None else self._parameters.get(name, {})


ANY_TOOLS = ToolSet()
"""Takes every name."""


class ToolCall(msgspec.Struct):
    """A call as the whole answer shows it."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


class Answer(msgspec.Struct):
    """A whole answer. What does not occur is an empty text or list."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []

    def add(self, events: Sequence[Event]) -> None:
        """Append what a parser gave."""
        for event in events:
            match event:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case ToolCallStart(_, id_, name):
                    self.tool_calls.append(ToolCall(id_, name))
                case ToolCallArguments(index, text):
                    self.tool_calls[index].arguments += text
                case ToolCallEnd(index, complete):
                    self.tool_calls[index].complete = complete


def read_whole(parser: Parser, text: str) -> Answer:
    """The answer that a fresh parser finds in a whole text."""
    answer = Answer()
    answer.add(parser.feed(text))
    answer.add(parser.finish())
    return answer
