"""Parsers of model output: tool calls and reasoning. Text in, events out; no tokens, no HTTP.

detect    which parsers a model needs          choice    what a request's tools mean for its answer
compose   makes the parser of one output       checks    tools, tool_choice and calls in messages are in order
tools/, reasoning/                             one file per family, a table of names in front
protocol  events and the interface; machine, reader, calls, tagged, thinking, harmony, *_text: what families share
"""

from __future__ import annotations

from quire.frontend.parsers.checks import check_calls_in_messages
from quire.frontend.parsers.choice import NO_TOOLS, ToolPlan, plan_tools
from quire.frontend.parsers.compose import find_thoughts, make_parser
from quire.frontend.parsers.detect import detect
from quire.frontend.parsers.protocol import (
    Answer,
    Content,
    Event,
    Parser,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolSet,
    read_whole,
)

__all__ = [
    "NO_TOOLS",
    "Answer",
    "Content",
    "Event",
    "Parser",
    "Reasoning",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolPlan",
    "ToolSet",
    "check_calls_in_messages",
    "detect",
    "find_thoughts",
    "make_parser",
    "plan_tools",
    "read_whole",
]
