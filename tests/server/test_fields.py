"""Every field of both endpoints over HTTP: values that work, and values that are refused with the field's name.

The tables must cover the request types: a new field without a row fails the first test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import make_service, running

from quire.frontend.validate import ChatRequest, CompletionRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
HUGE = 10**30
NOT_NUMBERS = ("1", True, [], {}, HUGE)
NOT_WHOLE = (*NOT_NUMBERS, 1.5)
NOT_TRUTH = ("true", 1, 0, [], {})
NOT_TEXT = (5, True, [], {})

# field: (values that work, values that are refused). {"_": ..., other fields} is a value with company.
Row = tuple[tuple[Any, ...], tuple[Any, ...]]


def beside(value: Any, **others: Any) -> dict[str, Any]:
    """A value that needs other fields beside it."""
    return {"_": value, **others}


BOTH: dict[str, Row] = {
    "model": (("fake", "org/fake"), NOT_TEXT),
    "stream": ((True, False), NOT_TRUTH),
    "stream_options": (
        (beside({"include_usage": True}, stream=True), beside({"continuous_usage_stats": True}, stream=True)),
        ({"include_usage": True}, beside({"include_usage": 1}, stream=True), beside([], stream=True), "x"),
    ),
    "n": ((1, 3, 16), (*NOT_WHOLE, 0, -1, 17, beside(2, temperature=0))),
    "temperature": ((0, 0.7, 2), (*NOT_NUMBERS, -0.1, 1e7)),
    "top_p": ((1, 0.1), (*NOT_NUMBERS, 0, 1.1, -1)),
    "top_k": ((-1, 0, 5), (*NOT_WHOLE, -2)),
    "min_p": ((0, 0.5, 1), (*NOT_NUMBERS, -0.1, 1.1)),
    "presence_penalty": ((-2, 0, 2), (*NOT_NUMBERS, -2.1, 2.1)),
    "frequency_penalty": ((-2, 0, 2), (*NOT_NUMBERS, -2.1, 2.1)),
    "repetition_penalty": ((0.5, 1, 2), (*NOT_NUMBERS, 0, -1)),
    "seed": ((0, -1, 2**63 - 1), (*NOT_WHOLE, 2**63)),
    "stop": (("x", ["a", "b"], []), (5, True, {}, [1], [""], "", ["a"] * 17, "a" * 300)),
    "stop_token_ids": (([], [1, 2]), (5, "1", ["1"], [-1], [1.5], [10**6], [True])),
    "ignore_eos": ((True, False), NOT_TRUTH),
    "include_stop_str_in_output": ((True, False), NOT_TRUTH),
    "min_tokens": ((0, 3), (*NOT_WHOLE, -1, beside(9, max_tokens=5))),
    "logit_bias": (({}, {"5": -100, "7": 1.5}), (5, "x", [], {"x": 1}, {"5": "1"}, {"5": 101}, {"-1": 1}, {"600": 1})),
    "allowed_token_ids": (([1, 2],), (5, "1", [], ["1"], [-1], [10**6])),
    "bad_words": (([], ["no"]), (5, "x", [5], [""], ["x"] * 200)),
    "skip_special_tokens": ((True, False), NOT_TRUTH),
    "spaces_between_special_tokens": ((True, False), NOT_TRUTH),
    "add_special_tokens": ((True, False), NOT_TRUTH),
    "priority": ((0, -5, 7), (*NOT_WHOLE, 2**40)),
    "cache_salt": (("", "tenant-1"), (*NOT_TEXT, "a/b", "x" * 129)),
    "best_of": ((1, 5, beside(4, n=3), beside(2, n=2, stream=True)), (*NOT_WHOLE, 0, -1, 17, beside(2, n=3),
        beside(2, temperature=0), beside(2, stream=True), beside(2, use_beam_search=True, n=2))),
    "use_beam_search": ((False, beside(True, n=2, max_tokens=3), beside(True, temperature=0, max_tokens=2)), NOT_TRUTH),
    "length_penalty": ((1, beside(0.5, use_beam_search=True, max_tokens=2)), (*NOT_NUMBERS,
        beside(11, use_beam_search=True))),
    "prompt_logprobs": ((0, 2), (*NOT_WHOLE, -2, -1, 21, beside(1, stream=True))),
    "thinking_token_budget": ((-1,), (*NOT_WHOLE, -2, 0, 100)),
    "repetition_detection": (({}, {"max_pattern_size": 3, "min_count": 4},
        {"max_pattern_size": 9, "min_pattern_size": 2, "min_count": 2}), (5, "x", [], {"size": 1},
        {"max_pattern_size": 2}, {"max_pattern_size": "2", "min_count": 2}, {"max_pattern_size": 2, "min_count": 1},
        beside({"max_pattern_size": 2, "min_count": 2}, use_beam_search=True, n=2))),
    "truncate_prompt_tokens": ((-1, 1, 10**6), (*NOT_WHOLE, 0, -2)),
    "truncation_side": (("left", "right"), (*NOT_TEXT, "middle")),
    "echo": ((True, False), NOT_TRUTH),
    "return_token_ids": ((True, False), NOT_TRUTH),
    "return_tokens_as_token_ids": ((True, False), NOT_TRUTH),
    "timeout": ((0.5, 60, 86_400), (*NOT_NUMBERS, 0, -1, 86_401)),
    "request_id": (("mine-1",), (*NOT_TEXT, "", "a b", "x" * 129, "a\n")),
}  # fmt: skip
CHAT_ONLY: dict[str, Row] = {
    "messages": (
        ([USER], [USER, {"role": "assistant", "content": "x"}, USER], [{"role": "user", "content": [{"type": "text",
            "text": "a"}]}]),
        ("hi", 5, {}, [], [5], [{}], [{"role": "user"}], [{"role": 1, "content": "x"}],
         [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": 5}]),
    ),
    "max_tokens": ((1, 5), (*NOT_WHOLE, 0, -1, 10**6)),
    "max_completion_tokens": ((1, 5, beside(5, max_tokens=7)), (*NOT_WHOLE, 0, -1, 10**6)),
    "logprobs": ((True, False), NOT_TRUTH),
    "top_logprobs": (
        (0, beside(0, logprobs=True), beside(5, logprobs=True)),
        (*NOT_WHOLE, 3, beside(21, logprobs=True), beside(-1, logprobs=True), beside(-2, logprobs=True)),
    ),
    "logprob_token_ids": (([], beside([5, 6], logprobs=True)), ("x", 5, {}, ["a"], [1.5], [True], [5],
        beside([-1], logprobs=True), beside([10**6], logprobs=True), beside(list(range(129)), logprobs=True),
        beside([5], logprobs=True, use_beam_search=True, n=2))),
    "add_generation_prompt": ((True, False), NOT_TRUTH),
    "continue_final_message": (
        (False, beside(True, add_generation_prompt=False)), (*NOT_TRUTH, True),
    ),
    "documents": (([], [{"title": "a", "text": "b"}]), (5, "x", ["x"], [{"title": 5}])),
    "chat_template": ((), (*NOT_TEXT, "{{ messages }}")),
    "chat_template_kwargs": (
        ({}, {"enable_thinking": False}),
        (5, "x", [], {"tokenize": True}, {"a": [1]}, {"messages": "x"}, {str(i): 1 for i in range(33)}),
    ),
    "tools": (([], [TOOL]), (5, "x", [5], [{}], [{"type": "function", "function": {}}])),
    "tool_choice": (("none", beside("auto", tools=[TOOL])), (5, [], "sometimes")),
    "parallel_tool_calls": ((True, False), NOT_TRUTH),
    "include_reasoning": ((True, False), NOT_TRUTH),
    "reasoning_effort": (("none", "low", "max"), (*NOT_TEXT, "huge")),
    "return_prompt_text": ((True, False), NOT_TRUTH),
}  # fmt: skip
TEXT_ONLY: dict[str, Row] = {
    "prompt": (
        ("hi", [5, 6], ["a", "b"], [[5], [6, 7]]),
        (5, True, {}, [], [[]], [1.5], [1, "a"], [[1], []], [None], [10**6], [-1], ["a"] * 65, [HUGE]),
    ),
    "max_tokens": ((1, 5, beside(0, echo=True)), (*NOT_WHOLE, 0, -1, 10**6)),
    "logprob_token_ids": (
        ([], beside([5, 6], logprobs=0)),
        (
            "x",
            5,
            {},
            ["a"],
            [1.5],
            [True],
            [5],
            beside([-1], logprobs=0),
            beside([10**6], logprobs=0),
            beside(list(range(129)), logprobs=0),
            beside([5], logprobs=0, use_beam_search=True, n=2),
            beside([5], logprobs=1, echo=True, max_tokens=0),
        ),
    ),
    "logprobs": ((0, 5, beside(2, echo=True)), (*NOT_WHOLE, -1, -2, 21)),
}
TABLES: dict[str, tuple[type, dict[str, Row], dict[str, Any]]] = {
    CHAT: (ChatRequest, {**BOTH, **CHAT_ONLY}, {"messages": [USER], "max_tokens": 4}),
    TEXT: (CompletionRequest, {**BOTH, **TEXT_ONLY}, {"prompt": "hi there", "max_tokens": 4}),
}
FIELDS = [(path, field) for path, (_, table, _) in TABLES.items() for field in table]
NOT_MINE = {
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("guided_decoding_backend", "guided_whitespace_pattern"),
}
"""Fields of answers held to a form have tests of their own."""


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running() as server, httpx.Client(base_url=server.url, timeout=20) as http:
        yield http


def body_of(path: str, field: str, value: Any) -> dict[str, Any]:
    company = dict(value) if isinstance(value, dict) and "_" in value else {"_": value}
    body = {**TABLES[path][2], **{name: other for name, other in company.items() if name != "_"}, field: company["_"]}
    if field == "max_completion_tokens":
        body.setdefault("max_tokens", 4)
    return body


@pytest.mark.parametrize("path", TABLES)
def test_the_tables_are_complete(path: str) -> None:
    kind, table, _ = TABLES[path]
    assert set(table) == set(kind.__struct_fields__) - NOT_MINE


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_good_values_work(http: httpx.Client, path: str, field: str) -> None:
    for value in TABLES[path][1][field][0]:
        answer = http.post(path, json=body_of(path, field, value))
        assert answer.status_code == 200, (value, answer.text)
        if "data: " in answer.text:
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.json()["choices"]


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_bad_values_are_refused_by_name(http: httpx.Client, path: str, field: str) -> None:
    for value in TABLES[path][1][field][1]:
        answer = http.post(path, content=json.dumps(body_of(path, field, value)))
        assert answer.status_code == 400, (value, answer.text)
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (field, "BadRequestError"), (value, error)
        assert error["message"] and "`" not in error["message"]


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_what_json_has_no_number_for(http: httpx.Client, path: str, field: str) -> None:
    """Python and JavaScript programs send these by mistake."""
    for value in ("NaN", "Infinity", "-Infinity", "1e309", "-1e400", "9" * 400):
        body = json.dumps({**TABLES[path][2], field: "HERE"}).replace('"HERE"', value)
        answer = http.post(path, content=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field, (value, answer.text)


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_null_is_the_same_as_nothing(http: httpx.Client, path: str, field: str) -> None:
    answer = http.post(path, json={**TABLES[path][2], field: None})
    assert answer.status_code == (400 if field in ("messages", "prompt") else 200)
    if answer.status_code == 200:
        assert "warnings" not in answer.json()


def test_a_template_from_a_request_needs_the_operators_word() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ word }}"
    body = {"messages": [USER], "chat_template": template, "chat_template_kwargs": {"word": "!"}, "max_tokens": 2}
    with running() as server:
        server.state.trust_request_chat_template = True
        answer = httpx.post(server.url + CHAT, json={**body, "return_prompt_text": True})
        assert answer.json()["prompt_text"] == "<s>[hi]!"
        for bad in (
            "{% for %}",
            "{{ messages[0].content * 100000000 }}",
            "{{ ''.__class__ }}{{ x.y.z }}",
            "x" * 2_000_000,
        ):
            refused = httpx.post(server.url + CHAT, json={**body, "chat_template": bad})
            assert refused.status_code == 400, bad[:50]


def test_what_has_no_effect_is_said(http: httpx.Client) -> None:
    answer = http.post(TEXT, json={"prompt": "a", "priority": 3, "length_penalty": 2, "max_tokens": 2}).json()
    assert ["priority" in answer["warnings"][1], "length_penalty" in answer["warnings"][0]] == [True, True]
    with running() as server:
        server.state.service = make_service(server.client, by_priority=True)
        assert "warnings" not in httpx.post(server.url + TEXT, json={"prompt": "a", "priority": 3}).json()


def test_beams_leave_no_room_for_sampling(http: httpx.Client) -> None:
    beams = {"prompt": "a", "use_beam_search": True, "n": 2, "max_tokens": 2}
    assert http.post(TEXT, json={**beams, "top_p": 1, "temperature": 0, "seed": 5, "stop": []}).status_code == 200
    for name, value in (
        ("temperature", 0.5), ("top_p", 0.5), ("top_k", 5), ("stop", "x"), ("stream", True), ("min_tokens", 1),
        ("logit_bias", {"5": 1}), ("bad_words", ["x"]), ("prompt_logprobs", 1), ("repetition_penalty", 1.1),
    ):  # fmt: skip
        answer = http.post(TEXT, json={**beams, name: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name
    assert http.post(TEXT, json={**beams, "echo": True, "logprobs": 1}).json()["error"]["param"] == "echo"


def test_request_ids(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 2, "request_id": "of-the-body"}
    assert http.post(TEXT, json=body).headers["x-request-id"] == "of-the-body"
    both = http.post(TEXT, json=body, headers={"x-request-id": "of-the-header"})
    assert both.headers["x-request-id"] == "of-the-header"
