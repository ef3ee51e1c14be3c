"""Thoughts: every family's tags, with and without the opening one in the prompt, and together with tool calls."""

from __future__ import annotations

import json

import pytest
from formats import CASES, NEEDS_LINE, THOUGHTS, TOOLS, WRITERS, in_pieces

from quire.errors import ConfigError
from quire.frontend.parsers import NO_TOOLS, Answer, make_parser, plan_tools, read_whole
from quire.frontend.parsers.protocol import Parser
from quire.frontend.parsers.reasoning import REASONING_PARSERS

FAMILIES = [(name, i) for name, tags in sorted(THOUGHTS.items()) for i in range(len(tags))]
THOUGHT = "First, 1 < 2.\n\nThen [a] {b} — é🌦️ <b>?"


def parse(name: str, text: str, prompt: str | None = None) -> Answer:
    answer = read_whole(REASONING_PARSERS[name](prompt), text)
    for size in (1, 2, 5):
        assert in_pieces(REASONING_PARSERS[name](prompt), text, size) == answer
    return answer


def test_every_registered_parser_has_examples() -> None:
    assert set(THOUGHTS) == set(REASONING_PARSERS)


@pytest.mark.parametrize(("name", "which"), FAMILIES)
def test_thoughts_and_answer(name: str, which: int) -> None:
    opener, closer = THOUGHTS[name][which]
    answer = parse(name, f"{opener}{THOUGHT}{closer}The answer\nis 42.\n")
    assert answer == Answer(content="The answer\nis 42.\n", reasoning=THOUGHT)
    assert parse(name, f"{opener}{closer}Yes") == Answer(content="Yes")
    assert parse(name, f"{opener}{THOUGHT}{closer}") == Answer(reasoning=THOUGHT)


@pytest.mark.parametrize(("name", "which"), FAMILIES)
def test_thoughts_without_an_end(name: str, which: int) -> None:
    opener, closer = THOUGHTS[name][which]
    answer = parse(name, f"{opener}{THOUGHT}\n")
    assert answer == Answer(reasoning=THOUGHT + "\n")
    text = f"{opener}{THOUGHT}{closer}"
    for size in range(len(text)):
        cut = parse(name, text[:size])
        assert cut.content == "" or not cut.reasoning or THOUGHT.startswith(cut.reasoning)


@pytest.mark.parametrize("name", sorted(REASONING_PARSERS))
def test_an_opening_tag_in_the_prompt(name: str) -> None:
    opener, closer = THOUGHTS[name][0]
    if name == "openai_gptoss":
        return
    opener = opener or "<think>\n"
    answer = parse(name, f"{THOUGHT}{closer}Yes", prompt=f"<|user|>Why?<|assistant|>{opener}")
    assert answer == Answer(content="Yes", reasoning=THOUGHT)
    answer = parse(name, f"{opener}{THOUGHT}{closer}Yes", prompt=f"<|user|>Why?<|assistant|>{opener}")
    assert answer == Answer(content="Yes", reasoning=THOUGHT)


@pytest.mark.parametrize("name", sorted(set(REASONING_PARSERS) - {"openai_gptoss"}))
def test_thoughts_that_the_prompt_has_closed(name: str) -> None:
    closer = THOUGHTS[name][0][1]
    text = "No tag here, \n\nbut a line.\n"
    assert parse(name, text, prompt=f"<|assistant|><think>\n\n{closer}") == Answer(content=text)


@pytest.mark.parametrize("name", ["qwen3", "glm45", "mistral", "granite", "seed_oss", "openai_gptoss"])
def test_an_answer_without_thoughts(name: str) -> None:
    for text in ("Hello", "\n Hello \n", "x < y", "", "a [THINK] b </think> c <think> d"):
        assert parse(name, text, prompt="<|user|>What is <think>?<|assistant|>") == Answer(content=text)


def test_the_answers_own_tags() -> None:
    assert parse("granite", "<think>a</think><response>b</response>") == Answer("b", "a")
    assert parse("hunyuan_a13b", "<think>\na\n</think>\n<answer>\nb\n</answer>\n") == Answer("b\n", "a")
    assert parse("hunyuan_a13b", "<think>\na\n</think>\n<answer>\nb</answer> c") == Answer("b</answer> c", "a")


def test_kimi_calls_end_the_thoughts() -> None:
    text = "<think>Let me see." + WRITERS["kimi_k2"][0]([("now", {})])
    parser = make_parser(plan_tools(TOOLS), tool_parser="kimi_k2", reasoning_parser="kimi_k2")
    answer = read_whole(parser, text)
    assert answer.reasoning == "Let me see." and answer.content == "" and len(answer.tool_calls) == 1


def test_thoughts_stream() -> None:
    parser = REASONING_PARSERS["qwen3"](None)
    parser.feed("<think>\n")
    for word in ("Well", ", so", " it", " is"):
        (event,) = parser.feed(word)
        assert event.text == word  # type: ignore[union-attr]


PAIRS = [(name, which, reasoning) for name, which in CASES for reasoning in ("qwen3", "mistral", "granite")]


@pytest.mark.parametrize(("name", "which", "reasoning"), PAIRS)
def test_thoughts_then_calls(name: str, which: int, reasoning: str) -> None:
    opener, closer = THOUGHTS[reasoning][0]
    calls = [("get_weather", {"city": "Paris"}), ("now", {})]
    thought = "Call <tool_call>{...} or [now()]" + ("\n" if name in NEEDS_LINE else "") + "!"
    text = opener + thought + closer + WRITERS[name][which](calls)

    def parser() -> Parser:
        return make_parser(
            plan_tools(TOOLS),
            tool_parser=name,
            reasoning_parser=reasoning,
            make_id=lambda index, function: f"id-{index}",
        )

    answer = read_whole(parser(), text)
    assert answer.reasoning == thought and answer.content == ""
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == calls
    assert in_pieces(parser(), text, 1) == answer


def test_harmony_reasoning_leaves_calls_to_the_tool_parser() -> None:
    text = "<|channel|>analysis<|message|>Hm<|end|>" + WRITERS["openai"][0]([("now", {})])
    plan = plan_tools(TOOLS)
    answer = read_whole(make_parser(plan, tool_parser="openai", reasoning_parser="openai_gptoss"), text)
    assert answer.reasoning == "Hm" and answer.content == "" and answer.tool_calls[0].name == "now"
    free = read_whole(make_parser(NO_TOOLS, tool_parser="openai", reasoning_parser="openai_gptoss"), text)
    assert free.reasoning == "Hm" and free.content.endswith("<|message|>{}<|call|>") and not free.tool_calls


def test_markers_are_those_of_both() -> None:
    parser = make_parser(plan_tools(TOOLS), tool_parser="hermes", reasoning_parser="qwen3")
    assert parser.markers == ("<think>", "</think>", "<tool_call>", "</tool_call>")
    assert make_parser(NO_TOOLS, tool_parser=None, reasoning_parser=None).markers == ()


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="no tool call parser 'hermse'; known are cohere_command3, deepseek_v3"):
        make_parser(plan_tools(TOOLS), tool_parser="hermse", reasoning_parser=None)
    with pytest.raises(ConfigError, match="no reasoning parser 'qwen4'"):
        make_parser(NO_TOOLS, tool_parser=None, reasoning_parser="qwen4")
