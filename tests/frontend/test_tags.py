"""Structural tags and calls, written as grammars, and what these take: with the library itself."""

from __future__ import annotations

from typing import Any

import pytest

from quire.demo import model_path
from quire.engine.grammar.matching import load_vocabulary, translate
from quire.errors import RequestError
from quire.frontend.parsers import plan_tools
from quire.frontend.parsers.protocol import CallForm
from quire.frontend.structured import SPACE, checked_schema
from quire.frontend.tags import TagWriter
from quire.frontend.tokenizer import Tokenizer
from quire.messages import Grammar

llguidance = pytest.importorskip("llguidance")
TOKENIZER = Tokenizer.from_folder(model_path())
VOCABULARY = load_vocabulary(str(model_path() / "tokenizer.json"), 1024, [0])
INTEGER = {"type": "json_schema", "json_schema": {"type": "integer"}}


def takes(text: str, *answers: str) -> list[bool]:
    """Which answers are whole ones under a grammar."""
    found = []
    for answer in answers:
        matcher = llguidance.LLMatcher(VOCABULARY, translate(Grammar("tags", text)), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = TOKENIZER.encode(answer, add_special_tokens=False)
        found.append(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())
    return found


def written(tag: dict[str, Any]) -> str:
    return TagWriter(TOKENIZER, SPACE, lambda schema: checked_schema(schema, "f")).write(tag, "f")


def form(**part: Any) -> str:
    return written({"type": "structural_tag", "format": part})


def test_the_old_form() -> None:
    text = written(
        {
            "structures": [
                {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
                {"begin": "<f=b>", "schema": {"enum": ["x"]}, "end": "</f>"},
            ],
            "triggers": ["<f="],
        }
    )
    good = ("", "only text < f", 'so <f=a>12</f> and <f=b>"x"</f>.', "<f=a>1</f>")
    bad = ("<f=", "<f=c>1</f>", "<f=a>x</f>", "<f=a>1")
    assert takes(text, *good) == [True] * 4 and takes(text, *bad) == [False] * 4


def test_parts() -> None:
    tag = {"type": "tag", "begin": "<n>", "content": INTEGER, "end": "</n>"}
    assert takes(form(type="const_string", value='a "b"\n'), 'a "b"\n', "a") == [True, False]
    assert takes(form(type="regex", pattern="a/b[0-9]"), "a/b7", "a/bx") == [True, False]
    assert takes(form(**tag), "<n>5</n>", "<n>x</n>", "5") == [True, False, False]
    both = form(type="or", elements=[tag, {"type": "const_string", "value": "no"}])
    assert takes(both, "<n>5</n>", "no", "yes") == [True, True, False]
    said = form(type="sequence", elements=[{"type": "const_string", "value": "I: "}, tag, {"type": "any_text"}])
    assert takes(said, "I: <n>5</n> done", "I: <n>5</n>", "<n>5</n>") == [True, True, False]
    free = form(type="tag", begin="<t>", content={"type": "any_text"}, end="</t>")
    assert takes(free, "<t>any < thing</t>", "<t></t>", "<t>a", "<t>a</t>b") == [True, True, False, False]
    listed = {"type": "tags_with_separator", "tags": [tag], "separator": ", "}
    assert takes(form(**listed), "", "<n>1</n>, <n>2</n>", "<n>1</n><n>2</n>") == [True, True, False]
    assert takes(form(**listed, at_least_one=True), "", "<n>1</n>") == [False, True]


def test_triggers() -> None:
    tag = {"begin": "<n>", "content": INTEGER, "end": "</n>"}
    base = {"type": "triggered_tags", "triggers": ["<n"], "tags": [tag]}
    assert takes(form(**base), "free", "a <n>1</n> b <n>2</n>", "<nn>") == [True, True, False]
    assert takes(form(**base, at_least_one=True), "free", "a <n>1</n> b") == [False, True]
    assert takes(form(**base, stop_after_first=True), "free", "a <n>1</n>", "<n>1</n> b") == [True, True, False]
    once = form(**base, stop_after_first=True, at_least_one=True)
    assert takes(once, "free", "a <n>1</n>", "<n>1</n> b") == [False, True, False]


def test_special_tokens_in_tags() -> None:
    """No text can spell them: they are named by id."""
    text = form(type="tag", begin="<|user|>n=", content=INTEGER, end="<|assistant|>")
    assert takes(text, "<|user|>n=5<|assistant|>", "n=5") == [True, False]
    tag = {"begin": "<|user|>", "content": INTEGER, "end": "<|pad|>"}
    text = form(type="triggered_tags", triggers=["<|user|>"], tags=[tag])
    assert takes(text, "hi <|user|>5<|pad|> there", "hi", "<|user|>x", "<|user|>7<|pad|>") == [True, True, False, True]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ({}, "'structures' and 'triggers', or 'format'"),
        ({"structures": [], "triggers": ["<"]}, "structures must be a list"),
        ({"structures": [{"begin": "<a>"}], "triggers": []}, "triggers must be a list"),
        ({"structures": [{"begin": "<a>"}], "triggers": ["<b"]}, "begins with one of the triggers"),
        ({"format": {"type": "poem"}}, "format.type must be one of const_string"),
        ({"format": {"type": "tag", "begin": ""}}, "format.begin must be text"),
        (
            {"format": {"type": "sequence", "elements": [{"type": "or", "elements": 3}]}},
            r"format.elements\[0\].elements",
        ),
    ],
)
def test_what_is_wrong_is_named(tag: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        written(tag)


def test_calls_in_a_family_s_own_format() -> None:
    from quire.frontend import called
    from quire.structured import StructuredOutputsParams

    tools = [
        {"type": "function", "function": {"name": name, "strict": True, "parameters": {
            "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
            "additionalProperties": False}}}
        for name in ("f", "g")
    ]  # fmt: skip
    spelt = CallForm("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>")

    class Service:
        tokenizer = TOKENIZER

    call = '<tool_call>\n{"name": "%s", "arguments": {"n": %s}}\n</tool_call>'
    plan = plan_tools(tools, "auto")
    text = called._auto(plan, spelt, None, Service()).text  # type: ignore[arg-type]
    assert takes(text, "Hi.", f"I look. {call % ('f', 1)}", f"{call % ('f', 1)}\n{call % ('g', 2)}") == [True] * 3
    assert takes(text, call % ("h", 1), call % ("f", '"x"'), "<tool_call>") == [False] * 3
    wanted = StructuredOutputsParams(json={"type": "object", "properties": {"ok": {"type": "boolean"}},
                                           "additionalProperties": False, "required": ["ok"]})  # fmt: skip
    text = called._auto(plan, spelt, wanted, Service()).text  # type: ignore[arg-type]
    answers = ('{"ok": true}', call % ("f", 1), f"{call % ('f', 1)}\n{call % ('g', 2)}", "Hi.", '{"n": 1}')
    assert takes(text, *answers) == [True, True, True, False, False]
    single = called._auto(plan_tools(tools, "auto", False), spelt, wanted, Service()).text  # type: ignore[arg-type]
    assert takes(single, answers[1], answers[2]) == [True, False]
