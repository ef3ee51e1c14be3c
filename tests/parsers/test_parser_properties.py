"""What holds for every parser and any text: cuts do not matter, nothing raises, nothing is lost, time is linear."""

# ruff: noqa: E501, RUF001 - texts are not broken; the wide bars are DeepSeek's own
from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from formats import BARE, CASES, KNOWN, THOUGHTS, TOOLS, WRITERS, Call, in_pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.frontend.parsers import ToolSet, make_parser, plan_tools, read_whole
from quire.frontend.parsers import machine as machine_module
from quire.frontend.parsers.protocol import Answer, Parser
from quire.frontend.parsers.reader import Reader
from quire.frontend.parsers.reasoning import REASONING_PARSERS
from quire.frontend.parsers.tools import TOOL_PARSERS
from quire.frontend.parsers.tools.forced import NamedParser, RequiredParser

Maker = Callable[[], Parser]
MANY = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def numbered(index: int, name: str) -> str:
    return f"id-{index}"


def tool_maker(name: str, tools: ToolSet = KNOWN) -> Maker:
    return lambda: TOOL_PARSERS[name](tools, make_id=numbered)


def pair_maker(tool: str, reasoning: str, prompt: str | None = None) -> Maker:
    return lambda: make_parser(
        plan_tools(TOOLS), tool_parser=tool, reasoning_parser=reasoning, prompt=prompt, make_id=numbered
    )


MAKERS: dict[str, Maker] = {
    **{f"tools {name}": tool_maker(name) for name in TOOL_PARSERS},
    **{f"any {name}": tool_maker(name, ToolSet()) for name in TOOL_PARSERS},
    **{f"reasoning {name}": (lambda name=name: REASONING_PARSERS[name](None)) for name in REASONING_PARSERS},
    "named": lambda: NamedParser("now", make_id=numbered),
    "required": lambda: RequiredParser(KNOWN, make_id=numbered),
    **{
        f"{reasoning} then {tool}": pair_maker(tool, reasoning, prompt)
        for tool in TOOL_PARSERS
        for reasoning, prompt in (("qwen3", None), ("deepseek_r1", None), ("qwen3", "<think>\n"))
    },
    "openai_gptoss then openai": pair_maker("openai", "openai_gptoss"),
    "kimi_k2 then kimi_k2": pair_maker("kimi_k2", "kimi_k2"),
    "granite then granite": pair_maker("granite", "granite"),
}

# ---- texts ---------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", " ", "\n", "\n\n", "a", "Hello.", "é🌦️", "{", "}", "[", "]", '"', "'", "\\", "\\u00", ":", ",", ";", "(", ")", "=",
     "1", "-", "0x", "tru", "null", "True", "<", ">", "|", "</", "<|", "｜", "```", "```json\n", "functions.now", "now",
     "get_weather", "nope", "name", '"name"', '"arguments"', "city", "\x00", "\u2028", "to=functions.now", "<think>", "</think>",
     '{"name": "now", "arguments": {"a": 1}}', '{"a": [1, "b"]}', "[now(a=1)]", "function", "functools["]
)  # fmt: skip


def pieces_of(name: str) -> st.SearchStrategy[str]:
    """Texts that a family's parser finds interesting."""
    family = TOOL_PARSERS[name]
    marks = [*family.markers, *family.openers, *family.closers]
    halves = [mark[: len(mark) // 2] for mark in marks] + [mark[1:] for mark in marks]
    return st.one_of(WORDS, st.sampled_from([*marks, *halves, "<parameter=city>", "<arg_key>", '"city">']))


def texts_of(name: str) -> st.SearchStrategy[str]:
    return st.lists(pieces_of(name), max_size=25).map("".join)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def mutated(draw: Any, name: str) -> str:
    """Calls as the family writes them, and then characters taken out, doubled, moved or put in."""
    writer = draw(st.sampled_from(WRITERS[name]))
    calls = draw(
        st.lists(
            st.tuples(st.sampled_from(["now", "get_weather"]), st.dictionaries(TEXT_KEY, VALUES, max_size=2)),
            max_size=3,
        )
    )
    text = draw(WORDS) + (writer(calls) if calls else "") + draw(WORDS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 12)))
        text = text[:at] + draw(st.one_of(st.just(""), pieces_of(name), st.just(text[at:end] * 2))) + text[end:]
    return text


TEXT_KEY = st.sampled_from(["city", "days", "hours", "note", "a_b"])
CUTS = st.one_of(st.just(1), st.lists(st.integers(0, 10_000), max_size=12))


def check(make: Maker, text: str, cuts: Any) -> Answer:
    whole = read_whole(make(), text)
    assert in_pieces(make(), text, cuts) == whole
    for call in whole.tool_calls:
        if call.complete:
            assert isinstance(json.loads(call.arguments), dict)
    return whole


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
@MANY
@given(data=st.data())
def test_cuts_do_not_matter_in_any_text(name: str, data: st.DataObject) -> None:
    text, cuts = data.draw(texts_of(name)), data.draw(CUTS)
    whole = check(tool_maker(name), text, cuts)
    check(tool_maker(name, ToolSet()), text, cuts)
    if not whole.tool_calls and name != "openai":
        assert whole.content == text


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
@MANY
@given(data=st.data())
def test_cuts_do_not_matter_in_mutated_calls(name: str, data: st.DataObject) -> None:
    text, cuts = data.draw(mutated(name)), data.draw(CUTS)
    whole = check(tool_maker(name), text, cuts)
    if not whole.tool_calls and name != "openai":
        assert whole.content == text


@pytest.mark.parametrize("make", [m for n, m in MAKERS.items() if not n.startswith(("tools", "any"))],
                         ids=[n for n in MAKERS if not n.startswith(("tools", "any"))])  # fmt: skip
@settings(MANY, max_examples=12)
@given(data=st.data())
def test_cuts_do_not_matter_in_combinations(make: Maker, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TOOL_PARSERS)))
    opener, closer = data.draw(st.sampled_from([tags for rows in THOUGHTS.values() for tags in rows]))
    thought = data.draw(texts_of(name))
    text = (
        data.draw(st.sampled_from(["", opener]))
        + thought
        + data.draw(st.sampled_from(["", closer]))
        + data.draw(mutated(name))
    )
    check(make, text, data.draw(CUTS))


@pytest.mark.parametrize(("name", "which"), CASES)
@MANY
@given(data=st.data())
def test_well_formed_calls_are_read_back(name: str, which: int, data: st.DataObject) -> None:
    """Whatever is written comes back; no marker leaks; text around stays."""
    calls: list[Call] = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["now", "run-code_2"]),
                st.dictionaries(st.sampled_from(["code", "x"]), VALUES, max_size=2),
            ),
            min_size=1,
            max_size=3,
        )
    )
    if name in BARE or name == "deepseek_v32":  # texts only: a bare value has no type and must not hold its closing tag
        calls = [(n, {"code": str(a.get("code", "")).replace("<", "")}) for n, a in calls]
    before = data.draw(st.sampled_from(["", "Hello.\n", "é {x}\n"])) if name != "openai" else ""
    whole = check(tool_maker(name), before + WRITERS[name][which](calls), data.draw(CUTS))
    assert [(call.name, json.loads(call.arguments)) for call in whole.tool_calls] == as_json(calls)
    assert whole.content.strip() == before.strip()


def as_json(calls: list[Call]) -> list[Call]:
    return [(name, json.loads(json.dumps(arguments))) for name, arguments in calls]


# ---- time and memory -----------------------------------------------------------------------------------------------


def hostile(name: str, size: int) -> dict[str, str]:
    """Texts that parsers of others have choked on."""
    family = TOOL_PARSERS[name]
    opener = (*family.openers, *family.line_openers)[0]
    start = opener + WRITERS[name][0]([("run-code_2", {"code": "x"})]).removeprefix(opener).partition("x")[0]
    units = {
        "openers": opener, "half openers": opener[: max(1, len(opener) - 1)], "braces": "{", "brackets": "[", "quotes": '"',
        "backslashes": "\\", "names": "now(", "spaces": " ", "lines": "\n", "lines with braces": "\n{", "digits": "9",
        "closers": (*family.closers, "}")[0], "arguments first": '{"arguments": {"a": "' , "nested": '{"function":', "plain": "word ",
    }  # fmt: skip
    texts = {kind: (unit * size)[:size] for kind, unit in units.items()}
    return texts | {f"{kind} in a call": (start + text)[:size] for kind, text in texts.items()}


def num_looked_at(make: Maker, text: str, cut: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that lie ahead of the grammar whenever it goes on; it looks at none of the others ever again."""
    count, push = 0, Reader.push

    def counted(reader: Reader, piece: str) -> None:
        nonlocal count
        push(reader, piece)
        count += len(reader.text)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "push", counted)
        in_pieces(make(), text, cut)
    return count


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_few_characters_are_looked_at_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One character at a time is the worst way to cut: at most the longest marker lies ahead each time, on average."""
    for make in (tool_maker(name), tool_maker(name, ToolSet()), pair_maker(name, "qwen3")):
        for kind, text in hostile(name, 3000).items():
            assert num_looked_at(make, text, 1, monkeypatch) <= 40 * len(text), kind
            assert num_looked_at(make, text, 64, monkeypatch) <= 3 * len(text), kind


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_a_long_text_takes_linear_time(name: str) -> None:
    """200,000 characters at once: anything quadratic would take minutes."""
    for kind, text in hostile(name, 200_000).items():
        start = time.perf_counter()
        read_whole(tool_maker(name)(), text)
        assert time.perf_counter() - start < 5, kind


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "qwen3_coder", "pythonic", "deepseek_v3", "openai"])
def test_200_000_characters_one_by_one(name: str) -> None:
    opener = (*TOOL_PARSERS[name].openers, *TOOL_PARSERS[name].line_openers)[0]
    text = opener + WRITERS[name][0]([("run-code_2", {"code": "y" * 200_000})]).removeprefix(opener)
    small, large = (min(timed(name, text[:size]) for _ in range(2)) for size in (50_000, 200_000))
    assert large < 8 * small + 0.2, (small, large)


def timed(name: str, text: str) -> float:
    parser = tool_maker(name)()
    start = time.perf_counter()
    for char in text:
        parser.feed(char)
    parser.finish()
    return time.perf_counter() - start


def test_what_waits_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much text before it is clear whether it is a call: it is content, however it was cut."""
    monkeypatch.setattr(machine_module, "HELD_LIMIT", 10_000)
    for tail in ('"}, "name": "now"}</tool_call> bye', ""):
        text = 'Hi <tool_call>{"arguments": {"a": "' + "x" * 30_000 + tail
        whole = read_whole(tool_maker("hermes")(), text)
        assert whole.content == text and not whole.tool_calls
        for cuts in (1, 7, 4096, 5000, [3, 11_000, 29_000]):
            assert in_pieces(tool_maker("hermes")(), text, cuts) == whole
    value = "1" * 30_000
    text = f"<tool_call><function=get_weather><parameter=days>{value}</parameter></function></tool_call> bye"
    whole = read_whole(tool_maker("qwen3_coder")(), text)
    assert not whole.tool_calls[0].complete and whole.content == "bye"
    assert in_pieces(tool_maker("qwen3_coder")(), text, 1) == whole


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_what_was_given_out_is_forgotten(name: str) -> None:
    parser = TOOL_PARSERS[name](KNOWN)
    for _ in range(200):
        parser.feed("some words, " * 50 + "\n")
        assert len(parser._reader.text) - parser._reader.at < 40 and parser._reader.num_held == 0
