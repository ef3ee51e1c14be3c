"""What the server asks of the engine for an answer of a given form: grammar, thoughts, and what it tells the caller."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeClient
from test_tools import MESSAGES, TOOLS, client_of

from quire.messages import Constraint

STRICT = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def asked(answer: str = "x", *, parsers: dict[str, Any] | None = None, **fields: Any) -> tuple[Constraint | None, str]:
    """The constraint that reached the engine, and the warnings."""
    with client_of(answer, **(parsers or {})) as (client, server):
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES, **fields)
        return server.client.submitted[-1][2]["constraint"], raw.headers.get("x-quire-warnings", "")


def test_no_form_no_constraint() -> None:
    assert asked() == (None, "")
    assert asked(response_format={"type": "text"}) == (None, "")


def test_forms() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    constraint, _ = asked(response_format=form)
    assert constraint is not None and constraint.param == "response_format" and constraint.gate is None
    assert constraint.grammar.kind == "json" and json.loads(constraint.grammar.text) == schema
    assert constraint.grammar.whitespace and not constraint.grammar.lenient
    closed, _ = asked(
        extra_body={
            "structured_outputs": {
                "json": schema,
                "disable_additional_properties": True,
                "disable_any_whitespace": True,
            }
        }
    )
    assert closed is not None and closed.grammar.whitespace is None
    assert json.loads(closed.grammar.text) == {**schema, "additionalProperties": False}
    old, warnings = asked(extra_body={"guided_choice": ["a", "b", "a"]})
    assert old is not None and (old.param, old.grammar.kind, old.grammar.text) == (
        "guided_choice",
        "choice",
        '["a","b"]',
    )
    assert "guided_choice is an old name" in warnings


def test_fewest_tokens_move_to_the_grammar() -> None:
    with client_of("x") as (client, server):
        client.chat.completions.create(
            model="fake", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=9,
            extra_body={"min_tokens": 5, "ignore_eos": True},
        )  # fmt: skip
        _, params, more = server.client.submitted[-1]
        assert params.min_tokens == 0 and params.structured_outputs is None
        assert more["constraint"].min_tokens == 5 and more["constraint"].endless
        assert more["stop_token_ids"], "the end is known although it is not wished for"


# ---- thoughts --------------------------------------------------------------------------------------------------------


def test_the_gate_of_a_model_that_thinks() -> None:
    fields = {"response_format": {"type": "json_object"}}
    may, _ = asked(parsers={"reasoning_parser": "qwen3"}, **fields)
    assert may is not None and may.gate is None, "this vocabulary has no token that begins thoughts"
    inside, _ = asked(parsers={"reasoning_parser": "deepseek_r1"}, **fields)
    assert inside is not None and inside.gate is not None and inside.gate.inside and inside.gate.ends


def test_gates_with_tags_that_are_tokens() -> None:
    from vocabularies import byte_level_core

    from quire.frontend.parsers import find_thoughts
    from quire.frontend.structured import gate_of
    from quire.frontend.tokenizer import Tokenizer

    core = byte_level_core().from_str(byte_level_core().to_str())
    tags = ["<think>", "</think>", "<|channel|>", "<|message|>", "<|constrain|>"]
    core.add_special_tokens(tags)
    ids = {tag: core.token_to_id(tag) for tag in tags}
    tokenizer = Tokenizer(core)

    def gate(parser: str, prompt: str) -> Any:
        return gate_of(find_thoughts(parser, prompt), tokenizer)

    may = gate("qwen3", "<|assistant|>")
    assert (may.inside, may.openers, may.ends) == (False, [ids["<think>"]], [[ids["</think>"]]])
    inside = gate("qwen3", "<|assistant|><think>\n")
    assert (inside.inside, inside.openers) == (True, [ids["<think>"]])
    assert gate("deepseek_r1", "<|assistant|>").inside
    assert not gate("deepseek_r1", "<think>\n\n</think>\n\n").inside
    harmony = gate("openai_gptoss", "<|start|>assistant")
    assert harmony.inside and harmony.ends[0][0] == ids["<|channel|>"] and harmony.ends[0][-1] == ids["<|message|>"]
    assert len(harmony.ends) == 2
    assert gate("granite", "x") is None or gate("granite", "x").openers == [ids["<think>"]]


# ---- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tools", "lenient"), [(TOOLS, True), (STRICT, False)])
def test_forced_calls(tools: list[Any], lenient: bool) -> None:
    required, warnings = asked('[{"name": "get_weather", "parameters": {}}]', tools=tools, tool_choice="required")
    assert required is not None and required.param == "tools" and not warnings
    schema = json.loads(required.grammar.text)
    assert schema["minItems"] == 1 and "maxItems" not in schema and required.grammar.lenient == lenient
    single, _ = asked(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert single is not None and json.loads(single.grammar.text)["maxItems"] == 1
    named, _ = asked("{}", tools=tools, tool_choice=NAMED)
    assert named is not None and json.loads(named.grammar.text) == tools[0]["function"]["parameters"]


def test_auto_with_strict_functions_and_with_a_form() -> None:
    assert asked(tools=TOOLS, parsers={"tool_parser": "hermes"}) == (None, "")
    strict, warnings = asked(tools=STRICT, parsers={"tool_parser": "hermes"})
    assert strict is not None and strict.grammar.kind == "tags" and not warnings
    assert "get_weather" in strict.grammar.text and "<tool_call>" in strict.grammar.text
    both, warnings = asked(tools=TOOLS, response_format={"type": "json_object"}, parsers={"tool_parser": "hermes"})
    assert both is not None and both.grammar.kind == "tags" and " | " in both.grammar.text and not warnings
    none, warnings = asked(tools=STRICT, parsers={"tool_parser": "qwen3_coder"})
    assert none is None and "strict has no effect" in warnings
    form, warnings = asked(tools=TOOLS, response_format={"type": "json_object"}, parsers={"tool_parser": "qwen3_coder"})
    assert form is not None and form.param == "response_format" and "tools cannot be called" in warnings


def test_a_refused_grammar_is_400_also_in_a_stream() -> None:
    class Refusing(FakeClient):
        async def _run(self, id_: int, params: Any, ends: list[int]) -> None:
            from quire.messages import TokenOutput

            stream = self._streams.pop(id_)
            self._tasks.pop(id_, None)
            stream.push(TokenOutput(id_, [], "error", error="response_format: nonsense", param="response_format"))

    from fake_engine import Running

    server = Running(Refusing())
    try:
        for stream in (False, True):
            answer = httpx.post(
                f"{server.url}/v1/chat/completions",
                json={"messages": MESSAGES, "response_format": {"type": "json_object"}, "stream": stream},
            )
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["message"]) == (
                400, "response_format", "response_format: nonsense",
            )  # fmt: skip
    finally:
        server.close()


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"guided_regex": "a"}, "guided_regex"), ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice")],
)
def test_a_beam_search_takes_no_form(fields: dict[str, Any], param: str) -> None:
    with client_of("x") as (client, server):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="fake", messages=MESSAGES, temperature=0, extra_body={"use_beam_search": True, **fields}
            )
        assert caught.value.param == param and not server.client.submitted


def test_two_forms_are_refused() -> None:
    with client_of("x") as (client, server):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="fake", messages=MESSAGES, response_format={"type": "json_object"},
                extra_body={"structured_outputs": {"regex": "a"}},
            )  # fmt: skip
        assert caught.value.param == "structured_outputs" and not server.client.submitted
