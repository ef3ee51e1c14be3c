"""ChatTemplate: messages to one prompt text, by the checkpoint's Jinja template in a sandbox that can bear a bad one.

A template comes with the model, so it is data from outside. It runs without access to Python, for at most
`TIME_LIMIT` seconds, and every value it makes is weighed (`metering`), so neither time nor memory runs away.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from quire.errors import RequestError
from quire.frontend.metering import Meter, MeteredEnvironment, TooHeavy
from quire.frontend.timelimit import TimeLimitExceeded, run_limited

TIME_LIMIT = 2.0
"""Seconds for compiling and for each rendering."""
MAX_TEMPLATE = 1 << 20
"""Characters of a template's source."""

RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "chat_template",
        "tokenizer",
        "conversation",
        "return_tensors",
        "return_dict",
        "padding",
        "truncation",
        "max_length",
        "raise_exception",
        "strftime_now",
    }
)
"""Names that `chat_template_kwargs` may not set: they are arguments of the call or belong to the sandbox."""

NO_TEMPLATE = (
    "This model's files have no chat template, so chat messages cannot be turned into a prompt. "
    "Use /v1/completions with a plain prompt, or start the server with --chat-template FILE.jinja."
)


class TemplateError(jinja2.TemplateError):
    """`raise_exception` in a template."""


class ChatTemplate:
    """The compiled template of one model.

    Args:
        source: the template, or several by name ('default' is used, 'tool_use' where there are tools), or None.
        special_tokens: texts such as `bos_token`, which templates refer to.
    """

    def __init__(self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]) -> None:
        self._sources = {"default": source} if isinstance(source, str) else dict(source or {})
        self._special_tokens = dict(special_tokens)

    def __bool__(self) -> bool:
        return bool(self._sources)

    @property
    def source(self) -> str | None:
        """The text of the template, the one for tools where there are several; None if there is none."""
        return self._choose(True) if self._sources else None

    def uses(self, variable: str) -> bool:
        """Whether the word appears in the template at all."""
        return any(variable in source for source in self._sources.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages. Takes CPU time: call it in a thread where others wait.

        Args:
            messages: role and content (text) each, and what else the template knows.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: leave the last message open, so that the model goes on with it.
            tools: JSON schemas of functions, for templates that list them.
            documents: texts to answer from, for templates that list them.
            kwargs: further variables.

        Raises:
            RequestError: no template; the template refuses the messages, fails, or is stopped at a limit.
        """
        if continue_final_message:
            return self._render_open(messages, tools=tools, documents=documents, kwargs=kwargs)
        variables = {
            **self._special_tokens,
            **(kwargs or {}),
            "messages": messages,
            "tools": tools or None,
            "documents": documents or None,
            "add_generation_prompt": add_generation_prompt,
        }
        source = self._choose(bool(tools))
        try:
            return run_limited(lambda: _render(source, variables), TIME_LIMIT)
        except TimeLimitExceeded:
            raise RequestError(f"The chat template was stopped after {TIME_LIMIT:g} s.", param="messages") from None
        except TooHeavy as error:
            raise RequestError(f"The chat template was stopped: {error}", param="messages") from None
        except TemplateError as error:
            raise RequestError(f"The chat template refuses these messages: {_shown(error)}", param="messages") from None
        except RecursionError:
            raise RequestError("The chat template calls itself too deeply.", param="messages") from None
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(f"The chat template is wrong in line {error.lineno}: {error.message}") from None
        except Exception as error:  # noqa: BLE001 - whatever a template does is the request's error
            message = f"The chat template fails on these messages: {_shown(error)}"
            raise RequestError(message, param="messages") from None

    def _choose(self, with_tools: bool) -> str:
        if not self._sources:
            raise RequestError(NO_TEMPLATE, param="messages", code="no_chat_template")
        if with_tools and "tool_use" in self._sources:
            return self._sources["tool_use"]
        return self._sources.get("default") or next(iter(self._sources.values()))

    def _render_open(self, messages: Sequence[Mapping[str, Any]], **rest: Any) -> str:
        """Render with a mark at the end of the last message, and cut there."""
        content = messages[-1].get("content") if messages else None
        parts = list(content) if isinstance(content, list) else []
        last = parts[-1].get("text") if parts and isinstance(parts[-1], Mapping) else content
        if not isinstance(last, str):
            raise RequestError(
                "continue_final_message needs a last message with text to continue.", param="continue_final_message"
            )
        mark = "\u2402quire-continues-here\u2403"
        opened: Any = last.rstrip() + mark
        if parts:
            opened = [*parts[:-1], {**parts[-1], "text": opened}]
        marked = [*messages[:-1], {**messages[-1], "content": opened}]
        text = self.render(marked, add_generation_prompt=False, **rest)
        if mark not in text:
            raise RequestError(
                "The chat template leaves the last message's text out; it cannot be continued.",
                param="continue_final_message",
            )
        return text[: text.rindex(mark)]


def _shown(error: Exception) -> str:
    """An error's text without memory addresses, which are nobody's business."""
    return re.sub(r"0x[0-9a-fA-F]+", "...", str(error))


def _render(source: str, variables: dict[str, Any]) -> str:
    environment = _environment()
    with Meter() as meter:
        template = _compile(source)
        context = template.new_context(variables, shared=False)
        pieces: list[str] = []
        for piece in template.root_render_func(context):
            meter.charge(piece)
            pieces.append(piece)
        return environment.concat(pieces)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_TEMPLATE:
        raise TooHeavy(f"its source has {len(source)} characters, at most {MAX_TEMPLATE} are taken.")
    return _environment().from_string(source)


@functools.cache
def _environment() -> MeteredEnvironment:
    environment = MeteredEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", GenerationTag],
        optimized=False,
    )
    environment.filters["tojson"] = environment.metered(_tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, without Jinja's HTML escaping: prompts are no web pages."""
    if indent is not None and not 0 <= indent <= 16:
        raise TooHeavy(f"tojson(indent={indent}), at most 16 are taken.")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 200:
        raise TooHeavy("strftime_now takes a format of at most 200 characters.")
    return datetime.now().strftime(format)


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's text for training; here it is just text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
