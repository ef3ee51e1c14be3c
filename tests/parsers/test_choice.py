"""tools, tool_choice and parallel_tool_calls: the plan, its schema, who reads the answer; and every way to be wrong."""

# ruff: noqa: E501 - texts are not broken
from __future__ import annotations

import json
from typing import Any

import pytest
from formats import TOOLS, in_pieces

from quire.errors import RequestError
from quire.frontend.parsers import NO_TOOLS, check_calls_in_messages, make_parser, plan_tools, read_whole
from quire.frontend.parsers.choice import required_schema

NAMED = {"type": "function", "function": {"name": "now"}}


def names(plan: Any) -> list[str]:
    return [tool["function"]["name"] for tool in plan.tools]


def test_without_tools() -> None:
    for arguments in ((None, None), ([], None), (None, "none"), (None, "auto"), (TOOLS, "none")):
        assert plan_tools(*arguments) == NO_TOOLS


def test_auto() -> None:
    plan = plan_tools(TOOLS)
    assert plan == plan_tools(TOOLS, "auto")
    assert (plan.reader, plan.schema, plan.max_calls, names(plan)) == (
        "auto",
        None,
        None,
        ["get_weather", "now", "run-code_2"],
    )
    assert plan_tools(TOOLS, "auto", False).max_calls == 1


def test_named() -> None:
    for choice in (NAMED, {"type": "function", "name": "now"}, {"function": {"name": "now"}}):
        plan = plan_tools(TOOLS, choice)
        assert (plan.reader, plan.name, plan.max_calls, names(plan)) == ("named", "now", 1, ["now"])
        assert plan.schema == {"type": "object"}
    plan = plan_tools(TOOLS, {"type": "function", "function": {"name": "get_weather"}})
    assert plan.schema == TOOLS[0]["function"]["parameters"]


def test_required() -> None:
    plan = plan_tools(TOOLS, "required")
    assert plan.reader == "required" and plan.schema is not None
    assert plan.schema["type"] == "array" and plan.schema["minItems"] == 1 and "maxItems" not in plan.schema
    options = plan.schema["items"]["anyOf"]
    assert [option["properties"]["name"]["enum"] for option in options] == [["get_weather"], ["now"], ["run-code_2"]]
    assert all(option["required"] == ["name", "parameters"] for option in options)
    assert plan_tools(TOOLS, "required", False).schema["maxItems"] == 1  # type: ignore[index]
    assert "anyOf" not in plan_tools(TOOLS[:1], "required").schema["items"]  # type: ignore[index]


def test_allowed_tools() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    plan = plan_tools(TOOLS, choice)
    assert (plan.reader, names(plan)) == ("required", ["now"])
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}
    assert (plan_tools(TOOLS, choice).reader, names(plan_tools(TOOLS, choice))) == ("auto", ["now"])


def test_definitions_move_to_the_root() -> None:
    schema = required_schema(TOOLS)
    assert schema["$defs"] == {"0.Place": {"type": "object", "properties": {"inside": {"$ref": "#/$defs/0.Place"}}}}
    parameters = schema["items"]["anyOf"][0]["properties"]["parameters"]
    assert parameters["properties"]["place"] == {"$ref": "#/$defs/0.Place"} and "$defs" not in parameters
    assert "$defs" in TOOLS[0]["function"]["parameters"]
    literal = {"properties": {"a": {"const": {"$ref": "#/$defs/x"}}, "$ref": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": literal}}
    kept = required_schema([tool])["items"]["properties"]["parameters"]["properties"]
    assert kept == literal["properties"]


def test_definitions_of_the_same_name_stay_apart() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {"properties": {"a": {"$ref": "#/definitions/X"}}, "definitions": {"X": {"type": kind}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    schema = required_schema([tool("f", "string"), tool("g", "integer")], arguments_key="arguments")
    assert schema["$defs"] == {"0.X": {"type": "string"}, "1.X": {"type": "integer"}}
    assert schema["items"]["anyOf"][1]["properties"]["arguments"]["properties"]["a"] == {"$ref": "#/$defs/1.X"}


# ---- who reads the answer --------------------------------------------------------------------------------------------


def read(plan: Any, text: str, **options: Any) -> Any:
    def parser() -> Any:
        return make_parser(
            plan, make_id=lambda i, n: f"id-{i}", **{"tool_parser": "hermes", "reasoning_parser": None} | options
        )

    answer = read_whole(parser(), text)
    assert in_pieces(parser(), text, 1) == answer
    return answer


def test_named_answers_are_arguments() -> None:
    plan = plan_tools(TOOLS, NAMED)
    answer = read(plan, ' {"a": {"name": "x"}}\n')
    assert [(c.name, c.arguments, c.complete) for c in answer.tool_calls] == [("now", '{"a": {"name": "x"}}', True)]
    assert answer.content == ""
    answer = read(plan, '<think>Hm</think>{"a": 1}', reasoning_parser="qwen3")
    assert answer.reasoning == "Hm" and answer.tool_calls[0].arguments == '{"a": 1}'
    assert read(plan, '{"a": 1').tool_calls[0].complete is False
    assert read(plan, "I will not.").content == "I will not."


def test_required_answers_are_lists() -> None:
    plan = plan_tools(TOOLS, "required")
    text = '[{"name": "now", "parameters": {}}, {"name": "get_weather", "parameters": {"city": "x"}}]'
    answer = read(plan, text)
    assert [(c.name, json.loads(c.arguments)) for c in answer.tool_calls] == [
        ("now", {}),
        ("get_weather", {"city": "x"}),
    ]
    assert answer.content == ""
    family = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert [c.name for c in read(plan, family, constrained=False).tool_calls] == ["now"]


def test_only_one_call_where_parallel_calls_are_off() -> None:
    text = '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now"}</tool_call> ok'
    assert len(read(plan_tools(TOOLS), text).tool_calls) == 2
    answer = read(plan_tools(TOOLS, None, False), text)
    assert len(answer.tool_calls) == 1 and answer.content == " ok"


def test_nobody_reads_calls_without_tools() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert read(NO_TOOLS, text).content == text
    assert read(plan_tools(TOOLS, "none"), text).content == text
    assert read(plan_tools(TOOLS), text, tool_parser=None).content == text


# ---- what is refused -------------------------------------------------------------------------------------------------


def tool(**function: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", **function}}]


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ("x", None, 'tools must be a list of functions; got "x".'),
        ({}, None, "tools must be a list of functions; got {}."),
        (["f"], None, 'tools[0] must be an object; got "f".'),
        ([{}], None, "tools[0].function must be an object with a name; got nothing."),
        ([{"type": "web_search"}], None, "tools[0].type must be 'function'; got \"web_search\"."),
        (tool(name=""), None, "tools[0].function.name must be 1..128 letters, digits, '_', '-', '.', ':' and '/'; got \"\"."),
        (tool(name="a b"), None, "tools[0].function.name must be 1..128 letters"),
        (tool(name="f" * 129), None, "tools[0].function.name must be 1..128 letters"),
        (tool(name=5), None, "got 5."),
        (tool() + tool(), None, "tools[1].function.name is 'f' again; each function needs a name of its own."),
        (tool(description=5), None, "tools[0].function.description must be text of at most 32768 characters; got 5."),
        (tool(strict="yes"), None, "tools[0].function.strict must be true or false; got \"yes\"."),
        (tool(parameters=[]), None, "tools[0].function.parameters must be a JSON schema of an object; got []."),
        (tool(parameters={"type": "array"}), None, "tools[0].function.parameters.type must be 'object'; got \"array\"."),
        (tool(parameters={"properties": []}), None, "tools[0].function.parameters.properties must be an object"),
        (tool() * 129, None, "tools takes at most 128 entries, got 129."),
        (tool(), "always", "tool_choice must be 'none', 'auto', 'required' or {"),
        (tool(), 5, "got 5."),
        (tool(), [], "got []."),
        (tool(), {"type": "web"}, "tool_choice.type must be 'function'; got \"web\"."),
        (tool(), {"type": "function"}, "tool_choice.function.name must be the name of a function in tools; got nothing."),
        (tool(), {"type": "function", "function": "f"}, "tool_choice.function.name must be the name"),
        (tool(), NAMED, "tool_choice.function.name must be one of 'f'; got \"now\"."),
        ([], NAMED, "tool_choice.function.name must be a function in tools, which is empty; got \"now\"."),
        ([], "required", "tool_choice is 'required', but tools is empty."),
        (tool(), {"type": "allowed_tools"}, "tool_choice.allowed_tools.mode must be 'auto' or 'required'; got nothing."),
        (tool(), {"type": "allowed_tools", "allowed_tools": 5}, "tool_choice.allowed_tools must be an object"),
        (tool(), {"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.allowed_tools.tools must be a list"),
        (tool(), {"type": "allowed_tools", "mode": "auto", "tools": ["x"]}, "tool_choice.allowed_tools.tools[0].function.name"),
    ],
)  # fmt: skip
def test_wrong_tools(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan_tools(tools, choice)
    assert message in caught.value.message
    assert caught.value.param in ("tools", "tool_choice") and caught.value.message.isascii()


def call(**fields: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": "{}", **fields.pop("function", {})}
    return [
        {"role": "user"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function, **fields}]},
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [], call(), call(function={"arguments": {"a": 1}}), call(function={"arguments": ""}), call(function={"arguments": None}),
        call(function={"arguments": '{"a": "\\ud83d\\ude00"}'}),
        [*call(), {"role": "tool", "tool_call_id": "c", "content": "ok"}], [{"role": "assistant", "tool_calls": []}],
    ],
)  # fmt: skip
def test_calls_in_messages(messages: Any) -> None:
    check_calls_in_messages(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "tool_calls": []}], "messages[0].role must be 'assistant' where there are tool_calls; got \"user\"."),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls must be a list of calls; got \"x\"."),
        ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls[0] must be an object"),
        (call(type="custom"), "messages[1].tool_calls[0].type must be 'function'; got \"custom\"."),
        (call(id=5), "messages[1].tool_calls[0].id must be text; got 5."),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function must be an object"),
        (call(function={"name": ""}), "messages[1].tool_calls[0].function.name must be text of 1..256 characters; got \"\"."),
        (call(function={"arguments": "{"}), "messages[1].tool_calls[0].function.arguments must be a JSON object as text"),
        (call(function={"arguments": "[]"}), "got \"[]\"."),
        (call(function={"arguments": "[" * 100_000}), "..."),
        (call(function={"arguments": 5}), "got 5."),
        ([{"role": "tool", "tool_call_id": 5}], "messages[0].tool_call_id must be text"),
        ([{"role": "user", "tool_call_id": "c"}], "messages[0].tool_call_id must be text, in messages with the role 'tool'"),
    ],
)  # fmt: skip
def test_wrong_calls_in_messages(messages: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_calls_in_messages(messages)
    assert message in caught.value.message and caught.value.param == "messages"
    assert len(caught.value.message) < 300
