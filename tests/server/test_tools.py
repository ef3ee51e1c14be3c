"""Tool calls and reasoning through the official client: streamed and whole answers say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from fake_engine import FakeClient, Running, make_service

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
MESSAGES = [{"role": "user", "content": "Weather?"}]


@contextmanager
def client_of(answer: str, **options: Any) -> Iterator[tuple[openai.OpenAI, Running]]:
    engine = FakeClient(answer)
    server = Running(engine, ready=False)
    try:
        server.state.serve(make_service(engine, server.metrics, **options))
        with openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as client:
            yield client, server
    finally:
        server.close()


def streamed(client: openai.OpenAI, **fields: Any) -> dict[str, Any]:
    """A stream, put together as a client would."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": [], "finish_reason": None}
    for chunk in client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=200, stream=True, **fields):
        choice = chunk.choices[0]
        message["content"] += choice.delta.content or ""
        message["reasoning"] += getattr(choice.delta, "reasoning", None) or ""
        assert getattr(choice.delta, "reasoning_content", None) == getattr(choice.delta, "reasoning", None)
        for part in choice.delta.tool_calls or []:
            if part.index == len(message["tool_calls"]):
                message["tool_calls"].append({"id": part.id, "name": part.function.name, "arguments": ""})
            message["tool_calls"][part.index]["arguments"] += part.function.arguments or ""
        message["finish_reason"] = choice.finish_reason or message["finish_reason"]
    return message


def whole(client: openai.OpenAI, **fields: Any) -> dict[str, Any]:
    choice = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=200, **fields).choices[0]
    calls = [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in choice.message.tool_calls or []
    ]
    reasoning = getattr(choice.message, "reasoning", None) or ""
    assert (getattr(choice.message, "reasoning_content", None) or "") == reasoning
    return {
        "content": choice.message.content or "",
        "reasoning": reasoning,
        "tool_calls": calls,
        "finish_reason": choice.finish_reason,
    }


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"tool_calls": [{**call, "id": None} for call in message["tool_calls"]]}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CALL, {"content": "", "reasoning": "", "finish_reason": "tool_calls", "calls": 1}),
        (f"<think>rain?</think>I look.{CALL}", {"content": "I look.", "reasoning": "rain?", "calls": 1}),
        (f"{CALL}\n{CALL}", {"content": "", "reasoning": "", "finish_reason": "tool_calls", "calls": 2}),
        ("<think>sun</think>It shines.", {"content": "It shines.", "reasoning": "sun", "finish_reason": "stop"}),
        ("Just <b>text</b>.", {"content": "Just <b>text</b>.", "reasoning": "", "finish_reason": "stop"}),
    ],
)
def test_streamed_and_whole(answer: str, expected: dict[str, Any]) -> None:
    with client_of(answer, tool_parser="hermes", reasoning_parser="qwen3") as (client, _):
        found = whole(client, tools=TOOLS)
        assert without_ids(streamed(client, tools=TOOLS)) == without_ids(found)
    assert len(found["tool_calls"]) == expected.pop("calls", 0)
    for call in found["tool_calls"]:
        assert call["name"] == "get_weather" and json.loads(call["arguments"]) == {"city": "Łódź"} and call["id"]
    assert {name: found[name] for name in expected} == expected


def test_without_tools_a_call_is_text() -> None:
    with client_of(CALL, tool_parser="hermes", reasoning_parser=None) as (client, _):
        assert whole(client)["content"] == CALL
        found = streamed(client, tools=TOOLS, tool_choice="none")
        assert (found["content"], found["tool_calls"], found["finish_reason"]) == (CALL, [], "stop")


def test_one_call_at_most_if_so_asked() -> None:
    with client_of(f"{CALL}\n{CALL}", tool_parser="hermes") as (client, _):
        assert len(whole(client, tools=TOOLS, parallel_tool_calls=False)["tool_calls"]) == 1


def test_reasoning_can_be_left_out() -> None:
    with client_of("<think>hm</think>Yes.", reasoning_parser="qwen3") as (client, _):
        for ask in (whole, streamed):
            found = ask(client, extra_body={"include_reasoning": False})
            assert (found["content"], found["reasoning"]) == ("Yes.", "")


def test_an_answer_cut_short_is_not_a_finished_call() -> None:
    with client_of(CALL, tool_parser="hermes") as (client, _):
        choice = client.chat.completions.create(model="fake", messages=MESSAGES, tools=TOOLS, max_tokens=30).choices[0]
        assert choice.finish_reason == "length"


def test_a_model_without_tools_says_so() -> None:
    with client_of("Hello.") as (client, _):
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES, tools=TOOLS)
        assert "tools has no effect" in raw.headers["x-quire-warnings"]
        assert raw.parse().choices[0].message.content == "Hello."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "messages"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with client_of("x", tool_parser="hermes") as (client, server):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": "fake", "messages": MESSAGES, **fields})
        assert caught.value.param == param
        assert not server.client.submitted


def test_a_wrong_parser_name_is_told_at_the_start() -> None:
    from quire.errors import ConfigError

    with pytest.raises(ConfigError, match="hermes"):
        make_service(FakeClient(), tool_parser="herms")
