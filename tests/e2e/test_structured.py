"""Structured output with the bundled model: offline, and over HTTP through the official client."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from enum import Enum
from random import Random
from typing import Any

import httpx
import jsonschema
import openai
import psutil
import pydantic
import pytest
from schemas import random_schema
from test_serve import Server

from quire import LLM, RequestError, SamplingParams, StructuredOutputsParams

NUM_SCHEMAS = int(os.environ.get("QUIRE_TEST_SCHEMAS", "200"))
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
MESSAGES = [{"role": "user", "content": "Tell me about a fox."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "maximum": 120, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model="demo", dtype="float32", max_num_seqs=64, structured_outputs_workers=4) as llm:
        yield llm


def held(max_tokens: int = 80, **form: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, structured_outputs=StructuredOutputsParams(**form), seed=3)


def ask(llm: LLM, params: SamplingParams, prompt: str = "Once upon a time") -> Any:
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]


# ---- offline ---------------------------------------------------------------------------------------------------------


def test_random_schemas_are_always_followed(llm: LLM) -> None:
    random = Random(20261121)
    schemas = [random_schema(random) for _ in range(NUM_SCHEMAS)]
    params = [
        SamplingParams(max_tokens=150, seed=i, structured_outputs=StructuredOutputsParams(json=schema))
        for i, schema in enumerate(schemas)
    ]
    outputs = llm.generate(["Once"] * len(params), params, use_tqdm=False)
    whole = 0
    for schema, output in zip(schemas, outputs, strict=True):
        answer = output.outputs[0]
        if answer.finish_reason != "length":
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.text), schema, format_checker=CHECKER)
            whole += 1
    assert whole > NUM_SCHEMAS / 2


def test_every_kind(llm: LLM) -> None:
    assert ask(llm, held(choice=["red fox", "blue"])).text in ("red fox", "blue")
    assert re.fullmatch("[0-9]{3}-[a-f]+", ask(llm, held(regex="[0-9]{3}-[a-f]{1,5}")).text)
    assert re.fullmatch("<[ab]{3}>", ask(llm, held(grammar='start: "<" /[ab]{3}/ ">"')).text)
    assert re.fullmatch("<[ab]>", ask(llm, held(grammar='root ::= "<" [ab] ">"')).text)
    jsonschema.validate(json.loads(ask(llm, held(json=PERSON)).text), PERSON)
    jsonschema.validate(json.loads(ask(llm, held(json=json.dumps(PERSON), disable_any_whitespace=True)).text), PERSON)
    assert ask(llm, held(max_tokens=20, json_object=True)).text.startswith("{")
    content = {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 9}}
    tag = {"type": "tag", "begin": "<n>", "content": content, "end": "</n>"}
    form = {"type": "sequence", "elements": [{"type": "const_string", "value": "It is "}, tag]}
    answer = ask(llm, held(structural_tag={"type": "structural_tag", "format": form}))
    assert re.fullmatch("It is <n>[0-9]</n>", answer.text)


def test_a_pydantic_model(llm: LLM) -> None:
    class Point(pydantic.BaseModel):
        x: int = pydantic.Field(ge=0, le=9)
        y: bool

    Point.model_validate_json(ask(llm, held(json=Point)).text)


def test_others_in_the_batch_are_as_if_alone(llm: LLM) -> None:
    free = [SamplingParams(max_tokens=30, seed=i, temperature=0.9, logprobs=1, presence_penalty=0.5) for i in range(6)]
    bound = [held(max_tokens=40, json=PERSON), held(max_tokens=30, regex="[a-z ]{25}"), held(choice=["yes", "no"])]
    alone = [ask(llm, params) for params in (*free, *bound)]
    together = llm.generate(["Once upon a time"] * 9, [*free, *bound], use_tqdm=False)
    assert [output.outputs[0].text for output in together] == [answer.text for answer in alone]


def test_with_everything_else(llm: LLM) -> None:
    several = held(regex="[a-z]{4}")
    several.n = 3
    texts = [choice.text for choice in llm.generate("Once", several, use_tqdm=False)[0].outputs]
    assert len(set(texts)) > 1 and all(re.fullmatch("[a-z]{4}", text) for text in texts)

    stop = held(regex="[a-z]+-[a-z]+")
    stop.stop = ["-"]
    answer = ask(llm, stop)
    assert re.fullmatch("[a-z]*", answer.text) and answer.finish_reason in ("stop", "length")

    least = held(regex="[0-9]{1,60}")
    least.min_tokens = 12
    assert len(ask(llm, least).token_ids) > 12
    too_many = held(choice=["a"])
    too_many.min_tokens = 50
    assert ask(llm, too_many).text == "a", "nothing else can follow"

    on = held(max_tokens=20, regex="[0-9]*")
    on.ignore_eos = True
    assert ask(llm, on).finish_reason == "length"

    told = held(regex="[0-9]{3}")
    told.logprobs = 2
    answer = ask(llm, told)
    assert len(answer.logprobs) == len(answer.token_ids)

    greedy = held(json=PERSON)
    greedy.temperature = 0
    assert ask(llm, greedy).text == ask(llm, greedy).text

    forbidden = held(choice=["cat", "dog"])
    forbidden.allowed_token_ids = [llm.get_tokenizer().encode("9", add_special_tokens=False)[0]]
    with pytest.raises(RequestError, match="leave no token"):
        ask(llm, forbidden)


def test_what_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="exactly one of"):
        StructuredOutputsParams(json={}, regex="a")
    with pytest.raises(RequestError, match="exactly one of"):
        StructuredOutputsParams()
    for form, words in (
        ({"json": {"type": "bogus"}}, "bogus"),
        ({"json": "{"}, "not JSON"),
        ({"regex": "("}, "unclosed"),
        ({"grammar": "start: x"}, "x"),
        ({"regex": "a" * 2000}, "1024 bytes"),
        ({"choice": ["a"] * 300}, "256 choices"),
        ({"json": {"enum": list(range(2000))}}, "1000 values"),
        ({"json": {"description": "x" * 70_000}}, "65536 bytes"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            ask(llm, held(**form))
        assert caught.value.param == "structured_outputs"
    assert ask(llm, SamplingParams(max_tokens=3)).token_ids


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--max-num-seqs", "64", "--structured-outputs-timeout", "5").wait_ready()
    yield server
    code, log = server.stop()
    assert code == 0, log


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)


class Color(Enum):
    red = "red"
    green = "green"


class Step(pydantic.BaseModel):
    text: str = pydantic.Field(max_length=8)
    done: bool


class Fox(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=10)
    color: Color
    age: int = pydantic.Field(ge=0, le=20)
    steps: list[Step] = pydantic.Field(max_length=2)
    friend: str | None = pydantic.Field(max_length=8)


def test_parse_with_pydantic(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Fox, max_tokens=200, seed=1, n=5
    )
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Fox) and choice.finish_reason == "stop"


def test_a_stream_with_pydantic(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=MESSAGES, response_format=Fox, max_tokens=200, seed=1
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Fox) and "content.delta" in kinds


def test_json_object_and_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=100, seed=5, n=2
    )
    for choice in answer.choices:
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    free = [
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, **more)
        .choices[0]
        .message.content
        for more in ({}, {"response_format": {"type": "text"}})
    ]
    assert free[0] == free[1]


def test_completions_and_old_names(client: openai.OpenAI) -> None:
    def complete(**fields: Any) -> Any:
        return client.completions.with_raw_response.create(
            model="demo", prompt="Once", max_tokens=60, extra_body=fields
        )

    schema = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}
    jsonschema.validate(json.loads(complete(response_format=schema).parse().choices[0].text), PERSON)
    assert complete(structured_outputs={"choice": ["a", "b"]}).parse().choices[0].text in "ab"
    for fields, pattern in (
        ({"guided_json": PERSON}, r"(?s)\{.*\}"),
        ({"guided_regex": "[0-9]{2}"}, "[0-9]{2}"),
        ({"guided_choice": ["x", "y"]}, "[xy]"),
        ({"guided_grammar": 'root ::= "q" [0-9]'}, "q[0-9]"),
    ):
        raw = complete(**fields)
        assert re.fullmatch(pattern, raw.parse().choices[0].text)
        assert f"{next(iter(fields))} is an old name of structured_outputs." in raw.headers["x-quire-warnings"]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 10}, "unit": {"$ref": "#/$defs/Unit"}},
                "required": ["city", "unit"],
                "additionalProperties": False,
                "$defs": {"Unit": {"enum": ["C", "F"]}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "wait",
            "parameters": {
                "type": "object",
                "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["days"],
                "additionalProperties": False,
            },
        },
    },
]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


def check_calls(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tools(client: openai.OpenAI, parallel: bool) -> None:
    names = set()
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel,
        max_tokens=150, n=8, seed=1,
    )  # fmt: skip
    for choice in answer.choices:
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls and not choice.message.content
        assert parallel or len(choice.message.tool_calls) == 1
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        check_calls(calls)
        names.update(name for name, _ in calls)
    assert names


def test_a_named_tool_whole_and_streamed(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "demo", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 100, "seed": 4,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }  # fmt: skip
    choice = client.chat.completions.create(**fields).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    check_calls([(call.function.name, call.function.arguments)])
    name, arguments, reason = "", "", None
    for chunk in client.chat.completions.create(stream=True, **fields):
        for part in chunk.choices[0].delta.tool_calls or []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, arguments, reason) == ("get_weather", call.function.arguments, choice.finish_reason)


def test_parse_tools_with_pydantic(client: openai.OpenAI) -> None:
    class Wait(pydantic.BaseModel):
        days: int = pydantic.Field(ge=0, le=9)

    answer = client.chat.completions.parse(
        model="demo", messages=MESSAGES, tools=[openai.pydantic_function_tool(Wait)], tool_choice="required",
        parallel_tool_calls=False, max_tokens=100,
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Wait)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "must be one of text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "name and schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "JSON schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "bogus"}}}},
         "response_format", "bogus"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "description": "y" * 70_000}}}}, "response_format", "65536 bytes"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "triggers"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs", "no 'jsn'"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs", "regular expression"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "b"}, "guided_regex", "give one"),
        ({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}, "guided_choice", "give one"),
        ({"guided_regex": "("}, "guided_regex", "unclosed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_400(server: Server, fields: dict[str, Any], param: str, words: str, stream: bool) -> None:
    """Also where it is found only when the grammar is compiled: before any header is sent."""
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 5, "stream": stream, **fields}
    )
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"], error


def test_a_killed_worker_costs_no_request(server: Server, client: openai.OpenAI) -> None:
    def workers() -> list[psutil.Process]:
        children = psutil.Process(server.process.pid).children(recursive=True)
        return [child for child in children if "quire.engine.grammar.child" in child.cmdline()]

    assert workers()
    for process in workers():
        process.send_signal(signal.SIGKILL)
    answer = client.completions.create(
        model="demo", prompt="Once", extra_body={"structured_outputs": {"regex": "k[0-9]{4}"}}
    )
    assert re.fullmatch("k[0-9]{4}", answer.choices[0].text)
    assert httpx.get(server.url + "/health").status_code == 200
