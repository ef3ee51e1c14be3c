"""Every family's format, whole and character by character; then what is special about each."""

# ruff: noqa: E501 - texts are not broken
from __future__ import annotations

import json
from typing import Any

import pytest
from formats import BARE, CASES, KNOWN, NEEDS_LINE, WRITERS, Call, in_pieces

from quire.frontend.parsers import Answer, ToolSet, read_whole
from quire.frontend.parsers.tools import TOOL_PARSERS

EXAMPLES: dict[str, list[Call]] = {
    "single": [("get_weather", {"city": "Paris"})],
    "parallel": [("get_weather", {"city": "Paris"}), ("now", {}), ("get_weather", {"city": "Rome", "days": 3})],
    "empty": [("now", {})],
    "nested": [("get_weather", {"city": "x", "place": {"inside": {"a": [1, {"b": [[]]}]}}, "hours": [1, 2, 3]})],
    "kinds": [("get_weather", {"city": "x", "days": -7, "wind": 1.5e-07, "metric": True, "extra": None})],
    "unicode": [("get_weather", {"city": "Zürich 東京 🌦️ \u2028 é"})],
    "escapes": [("run-code_2", {"code": "print(\"a\\n\\t\\\\\")\n\tif x: 'y'\r\u0001"})],
    "brackets": [("run-code_2", {"code": '}}]]{{[[ )(, "}" ]} \'"\' ```\n```json'})],
    "blank": [("run-code_2", {"code": ""})],
    "long": [("run-code_2", {"code": "x = [1, 2]\n" * 500})],
}


def parse(name: str, text: str, tools: ToolSet = KNOWN, size: int | None = None) -> Answer:
    parser = TOOL_PARSERS[name](tools, make_id=lambda index, function: f"id-{index}")
    return read_whole(parser, text) if size is None else in_pieces(parser, text, size)


def calls_of(answer: Answer) -> list[Call]:
    assert all(call.complete for call in answer.tool_calls)
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


def test_every_registered_parser_has_examples() -> None:
    assert set(WRITERS) == set(TOOL_PARSERS)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize(("name", "which"), CASES)
def test_calls_alone(name: str, which: int, example: str) -> None:
    text = WRITERS[name][which](EXAMPLES[example])
    whole = parse(name, text)
    assert calls_of(whole) == EXAMPLES[example]
    assert whole.content == "" and whole.reasoning == ""
    for size in (1, 2, 3, 7, 64):
        assert parse(name, text, size=size) == whole


@pytest.mark.parametrize(("name", "which"), CASES)
def test_text_before_and_after(name: str, which: int) -> None:
    calls = WRITERS[name][which](EXAMPLES["parallel"])
    before = "Let me look: 1 < 2, [a] {b} <tool, `x`." + ("\n" if name in NEEDS_LINE else "")
    whole = parse(name, before + calls)
    assert calls_of(whole) == EXAMPLES["parallel"]
    assert whole.content.rstrip() == before.rstrip()
    assert parse(name, before + calls, size=1) == whole
    if name not in NEEDS_LINE:
        after = parse(name, calls + "\n\nDone.")
        assert calls_of(after) == EXAMPLES["parallel"] and after.content.strip() == "Done."


@pytest.mark.parametrize(("name", "which"), CASES)
def test_markers_inside_a_string_are_text(name: str, which: int) -> None:
    if name in BARE or name == "deepseek_v32":
        pytest.skip("bare values end at their closing tag")
    code = " ".join((*TOOL_PARSERS[name].markers, *TOOL_PARSERS[name].openers, *TOOL_PARSERS[name].closers))
    calls: list[Call] = [("run-code_2", {"code": f"{code}\n{{[{code}"}), ("now", {})]
    text = WRITERS[name][which](calls)
    assert calls_of(parse(name, text)) == calls
    assert parse(name, text, size=1) == parse(name, text)


@pytest.mark.parametrize(("name", "which"), CASES)
def test_an_unknown_function_is_no_call(name: str, which: int) -> None:
    text = WRITERS[name][which]([("get_wether", {"city": "Paris"})])
    answer = parse(name, text)
    assert answer.tool_calls == []
    if name != "openai":  # messages end without a trace
        assert answer.content == text
    assert parse(name, text, ToolSet()).tool_calls[0].name == "get_wether"


@pytest.mark.parametrize(("name", "which"), CASES)
def test_every_truncation_adds_up(name: str, which: int) -> None:
    calls = EXAMPLES["parallel"]
    text = "Hm.\n" + WRITERS[name][which](calls)
    for size in range(len(text)):
        answer = parse(name, text[:size])
        assert in_pieces(TOOL_PARSERS[name](KNOWN, make_id=lambda i, f: f"id-{i}"), text[:size], 1) == answer
        for given, (function, arguments) in zip(answer.tool_calls, calls, strict=False):
            assert given.name == function
            if given.complete:
                assert json.loads(given.arguments) == arguments
        assert all(call.complete for call in answer.tool_calls[:-1])
        if not answer.tool_calls and name != "openai":
            assert answer.content == text[:size]


HEADERS = frozenset({"openai", "cohere_command3", "minimax_m2", "deepseek_v32"})
"""Formats with ids, attributes or headers around a call, which are read and left out."""


@pytest.mark.parametrize(("name", "which"), [case for case in CASES if case[0] not in HEADERS])
def test_a_stray_word_is_never_lost(name: str, which: int) -> None:
    """Wherever it is put: in the content, the arguments or the name (or the function is unknown and all is content)."""
    text = WRITERS[name][which]([("get_weather", {"city": "x", "days": 3}), ("now", {})])
    for at in range(len(text) + 1):
        answer = parse(name, text[:at] + "zqxjkw" + text[at:])
        found = answer.content + "".join(call.id + call.name + call.arguments for call in answer.tool_calls)
        assert "zqxjkw" in found, at


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_plain_text_is_content_at_once(name: str) -> None:
    parser = TOOL_PARSERS[name](KNOWN)
    for word in ("Hello", " there", ", 3 > 2", " and", " f(x)", ".\n", "Next line", " é🌦️"):
        answer = Answer()
        answer.add(parser.feed(word))
        assert answer.content.strip() == word.strip()
    text = '  {"a": [1, 2]}\n\n[x](y) <b>bold</b> `[1, 2]` <|unknown|> \n'
    assert parse(name, text).content == text
    assert parse(name, "").content == ""
    assert parse(name, " \n\n").content == " \n\n"


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_ids_differ(name: str) -> None:
    calls = [("now", {}), ("now", {})]
    answer = read_whole(TOOL_PARSERS[name](KNOWN), WRITERS[name][0](calls))
    first, second = (call.id for call in answer.tool_calls)
    assert first != second and first and second


# ---------------------------------------------------------------------------------------------------------------
# what is special


def one(name: str, text: str, tools: ToolSet = KNOWN) -> tuple[str, Any, str]:
    answer = parse(name, text, tools)
    assert parse(name, text, tools, size=1) == answer
    (call,) = answer.tool_calls
    assert call.complete
    return call.name, json.loads(call.arguments), answer.content


@pytest.mark.parametrize(
    ("members", "arguments"),
    [
        ('"arguments": {"city": "x"}, "name": "get_weather"', {"city": "x"}),
        ('"id": "c1", "type": "function", "name": "get_weather", "parameters": {"city": "x"}', {"city": "x"}),
        ('"type": "function", "function": {"name": "get_weather", "arguments": {"city": "x"}}', {"city": "x"}),
        ('"function": "get_weather", "parameters": {"city": "x"}', {"city": "x"}),
        ('"name": "get_weather", "arguments": "{\\"city\\": \\"x\\"}"', {"city": "x"}),
        ('"name": "get_weather", "arguments": ""', {}),
        ('"name": "get_weather", "arguments": null', {}),
        ('"name": "get_weather"', {}),
        ('"name": "get_weather", "arguments": {"city": "x"}, "comment": [{"}": "]"}]', {"city": "x"}),
        ('"why": "need it", "name": "get_weather", "arguments": {"city": "x"}', {"city": "x"}),
        ('"n\\u0061me": "get_weather", "arguments": {"city": "x"}', {"city": "x"}),
    ],
)
def test_call_objects(members: str, arguments: dict[str, Any]) -> None:
    text = f"<tool_call>\n{{{members}}}\n</tool_call>"
    assert one("hermes", text) == ("get_weather", arguments, "")


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "{}", "[]", "null", '"get_weather"', "get_weather", '{"name": 1}', '{"name": "get_weather", "arguments": [1]}',
        '{"name": "get_weather", "arguments": 5}', '{"name": "get_weather", "arguments": "hello"}',
        '{"name": "get_weather" "arguments": {}}', "{'name': 'get_weather'}", '{"arguments": {"city": "x"}}', '{"name": "get_weather", "args": {"city": "x"}}',
        '{"name": "get_weather", "arguments": "{\\"city\\": "}', '{"name": "get_weather", "arguments": "\\ud800"}',
        '{"name": "' + "x" * 300 + '"}', "{" * 100, "[" * 100, '{"a":' * 100,
    ],
)  # fmt: skip
def test_what_is_no_call_is_content_as_written(body: str) -> None:
    for text in (f"<tool_call>{body}</tool_call> Sorry.", f"<tool_call>{body}"):
        answer = parse("hermes", text)
        assert answer == Answer(content=text)
        assert parse("hermes", text, size=1) == answer


def test_reading_goes_on_behind_what_is_no_call() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    name, _, content = one("hermes", f"<tool_call>oops</tool_call> again: {good}")
    assert (name, content) == ("now", "<tool_call>oops</tool_call> again: ")


def test_unknown_function_in_a_list_is_content_and_the_others_are_calls() -> None:
    text = '[TOOL_CALLS][{"name": "nope", "arguments": {}}, {"name": "now", "arguments": {}}]'
    assert one("mistral", text) == ("now", {}, '[TOOL_CALLS][{"name": "nope", "arguments": {}}')
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "nope", "arguments": {}}]'
    assert one("mistral", text) == ("now", {}, '{"name": "nope", "arguments": {}}]')


@pytest.mark.parametrize(
    ("text", "arguments", "content"),
    [
        ('<tool_call>{"name": "now", "arguments": {"a": @}}</tool_call>\nBye', '{"a": @}}', "Bye"),
        ('<tool_call>{"name": "now", "arguments": {"a": 01}}</tool_call>', '{"a": 01}}', ""),
        ('<tool_call>{"name": "now", "arguments": {"a": tru}', '{"a": tru}', ""),
        ('<tool_call>{"name": "now", "arguments": {"a": tru', '{"a": tru', ""),
        ('<tool_call>{"name": "now", "arguments": {"a": "x\\', '{"a": "x\\', ""),
        ('<tool_call>{"name": "now", "arguments": {"a": "x\\u12', '{"a": "x\\u12', ""),
        ('<tool_call>{"name": "now", "arguments": {"a" 1}<tool_call>oops', '{"a" 1}', "<tool_call>oops"),
        ('<tool_call>{"name": "now", "arguments": {' + "[" * 70 + "</tool_call>", "{" + "[" * 70, ""),
        ('<tool_call>{"name": "now", "arguments": {"a":' + "[" * 70, '{"a":' + "[" * 70, ""),
        ('<tool_call>{"name": "now", "arguments": {"a":' + "9" * 300 + "}</tool_call>", '{"a":' + "9" * 300 + "}", ""),
    ],
)
def test_a_call_that_goes_wrong_keeps_what_was_written(text: str, arguments: str, content: str) -> None:
    answer = parse("hermes", text)
    (call,) = answer.tool_calls
    assert (call.arguments, call.complete, answer.content) == (arguments, False, content)
    assert parse("hermes", text, size=1) == answer


@pytest.mark.parametrize(
    ("written", "value"),
    [('"a\nb\tc\rd\x00"', "a\nb\tc\rd\x00"), (r'"\d+\s"', r"\d+\s"), (r'"\u12"', r"\u12"), (r'"\é\\"', "\\é\\")],
)
def test_strings_are_repaired(written: str, value: str) -> None:
    text = f'<tool_call>{{"name": "now", "arguments": {{"a": {written}}}}}</tool_call>'
    assert one("hermes", text) == ("now", {"a": value}, "")


@pytest.mark.parametrize("end", ["}</tool_call>", "}}\n</tool_call>", "\n</tool_call>", "", "\n", "</tool_c", "}\n<"])
def test_sloppy_ends(end: str) -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}' + end
    answer = parse("hermes", text)
    assert answer == parse("hermes", text, size=1)
    assert answer.content == "" and answer.tool_calls[0].complete
    text = '<tool_call>{"name": "now", "arguments": {}' + end.removeprefix("}")
    answer = parse("hermes", text)
    assert answer == parse("hermes", text, size=1)
    assert answer.tool_calls[0].complete


def test_several_calls_between_one_pair_of_tags() -> None:
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert calls_of(parse("hermes", text)) == [("now", {}), ("now", {"a": 1})]


def test_arguments_stream_while_they_arrive() -> None:
    parser = TOOL_PARSERS["hermes"](KNOWN)
    parser.feed('<tool_call>{"name": "run-code_2", "arguments": {"code": "')
    for word in ("import", " os", "\\n", "x"):
        (event,) = parser.feed(word)
        assert event.text == word  # type: ignore[union-attr]


def test_mistral_ids() -> None:
    answer = parse("mistral", '[TOOL_CALLS]now[CALL_ID]abcdef123[ARGS]{}[TOOL_CALLS]now{"a": 1}')
    assert [(c.id, c.arguments) for c in answer.tool_calls] == [("abcdef123", "{}"), ("id-1", '{"a": 1}')]
    new = read_whole(TOOL_PARSERS["mistral"](KNOWN), "[TOOL_CALLS]now[ARGS]{}").tool_calls[0].id
    assert len(new) == 9 and new.isalnum()


def test_kimi_ids_are_the_models_own() -> None:
    text = WRITERS["kimi_k2"][0]([("now", {}), ("get_weather", {"city": "x"})])
    answer = parse("kimi_k2", text)
    assert [(c.id, c.name) for c in answer.tool_calls] == [
        ("functions.now:0", "now"),
        ("functions.get_weather:1", "get_weather"),
    ]


def test_llama_json_that_is_an_answer_streams() -> None:
    parser = TOOL_PARSERS["llama3_json"](KNOWN)
    parser.feed('{"answer')
    assert parser.feed('": ')[0].text == '{"answer": '  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'it\\'s'", "it's"), ('"x"', "x"), ("'''a\n'b' \"c\"'''", "a\n'b' \"c\""), ("''", ""), ("''''''", ""),
        ("'\\x41\\u00e9\\U0001F600\\n\\q\\0'", "A\u00e9\U0001f600\n\\q\0"), ("'a\\\nb'", "ab"), ("'\\u12'", "\\u12"),
        ("True", True), ("true", True), ("None", None), ("null", None), ("1_000", 1000), ("0xFF", 255), ("+5", 5),
        (".5", 0.5), ("5.", 5.0), ("-1e3", -1000.0), ("[1, 2,]", [1, 2]), ("(1, 'a')", [1, "a"]), ("(1,)", [1]),
        ("()", []), ("{}", {}), ("{'a': {'b': [()]}, }", {"a": {"b": [[]]}}), ("{1: 2, None: 3}", {"1": 2, "null": 3}),
        ("[[1, [2]], []]", [[1, [2]], []]),
    ],
)  # fmt: skip
def test_python_literals(written: str, value: Any) -> None:
    assert one("pythonic", f"[now(a={written}, b = 1)]") == ("now", {"a": value, "b": 1}, "")


@pytest.mark.parametrize(
    "written",
    [
        "x",
        "f(1)",
        "__import__('os')",
        "1+1",
        "(1)",
        "{1, 2}",
        "[,]",
        "{'a'}",
        "'a",
        "inf",
        "nan",
        "[1 2]",
        "b'x'",
        "lambda: 0",
    ],
)
def test_python_that_is_no_literal(written: str) -> None:
    text = f"[now(a={written})]"
    answer = parse("pythonic", text)
    assert parse("pythonic", text, size=1) == answer
    (call,) = answer.tool_calls
    assert not call.complete


@pytest.mark.parametrize(
    "text", ["[now]", "[now(1)]", "[now('a')]", "[now(**x)]", "[]", "[nope(a=1)]", "now(a=1)", "[now(", "[no"]
)
def test_python_that_is_no_call(text: str) -> None:
    assert parse("pythonic", text) == Answer(content=text) == parse("pythonic", text, size=1)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("city", "5", "5"), ("city", "null", "null"), ("city", '{"a": 1}', '{"a": 1}'), ("days", "5", 5),
        ("days", "five", "five"), ("days", " 5 ", 5), ("wind", "1.5", 1.5), ("metric", "True", True),
        ("metric", "FALSE", False), ("metric", "maybe", "maybe"), ("hours", "[1, 2]", [1, 2]),
        ("hours", "(1, 2)", [1, 2]), ("place", "{'inside': None}", {"inside": None}), ("note", "null", None),
        ("note", "nullable", "nullable"), ("extra", "None", None), ("extra", "{}", {}), ("else", "5", "5"),
        ("city", "\n a\n\n b \n", "\n a\n\n b \n"), ("city", "\n", "\n"), ("city", "", ""), ("hours", "[1", "[1"),
    ],
)  # fmt: skip
def test_bare_values_follow_the_schema(key: str, written: str, value: Any) -> None:
    text = f"<tool_call>\n<function=get_weather>\n<parameter={key}>\n{written}\n</parameter>\n</function>\n</tool_call>"
    assert one("qwen3_coder", text) == ("get_weather", {key: value}, "")
    text = f"<tool_call>get_weather\n<arg_key>{key}</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>"
    assert one("glm45", text) == ("get_weather", {key: value}, "")


def test_bare_string_streams() -> None:
    parser = TOOL_PARSERS["qwen3_coder"](KNOWN)
    parser.feed("<tool_call>\n<function=run-code_2>\n<parameter=code>\n")
    answer = Answer()
    answer.tool_calls = []
    texts = [event.text for word in ("a = 1", "\n", "b", "\n") for event in parser.feed(word)]  # type: ignore[union-attr]
    assert texts == ["a = 1", "\\nb"]


HARMONY_CALL = "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "num_calls"),
    [
        ("<|channel|>final<|message|>Hi<|return|>", "Hi", "", 0),
        ("<|channel|>final<|message|>Hi", "Hi", "", 0),
        ("Hi", "Hi", "", 0),
        ("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi", "Hi", "Hm", 0),
        ("<|channel|>analysis<|message|>Hm<|end|>" + HARMONY_CALL, "", "Hm", 1),
        ("<|channel|>analysis<|message|>Hm" + HARMONY_CALL, "", "Hm", 1),
        ("<|channel|>commentary<|message|>Look.<|end|>" + HARMONY_CALL * 2, "Look.", "", 2),
        (" to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", "", "", 1),
        ("<|channel|>commentary to=functions.now<|message|><|call|>", "", "", 1),
        ("<|channel|>commentary to=functions.now<|message|>{ }", "", "", 1),
        ('<|channel|>analysis to=browser.search code<|message|>{"q": 1}<|call|>', "", '{"q": 1}', 0),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>", "", "ab", 0),
    ],
)
def test_harmony(text: str, content: str, reasoning: str, num_calls: int) -> None:
    answer = parse("openai", text)
    assert (answer.content, answer.reasoning, len(answer.tool_calls)) == (content, reasoning, num_calls)
    assert all(json.loads(call.arguments) == {} for call in answer.tool_calls)
    assert parse("openai", text, size=1) == answer


def test_hostile_schemas_cost_little() -> None:
    many = [{"$ref": f"#/$defs/{i}"} for i in range(100)]
    parameters = {
        "properties": {
            "a": {"$ref": "#/$defs/0"},
            "b": {"anyOf": many},
            "c": {"$ref": "#/$defs/x"},
            "d": 5,
            "e": {"type": [5]},
        },
        "$defs": {str(i): {"anyOf": many} for i in range(100)} | {"x": {"enum": [1, "a", None]}},
    }
    tools = ToolSet([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    inside = "".join(f"<parameter={key}>\n1\n</parameter>\n" for key in "abcde")
    _, arguments, _ = one("qwen3_coder", f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>", tools)
    assert arguments == dict.fromkeys("abcde", "1")


def test_nesting_does_not_recurse() -> None:
    for unit in ('{"function":', '{"function": {"name": ', "[", '{"arguments":'):
        text = "<tool_call>" + unit * 5000
        assert parse("hermes", text).content == text
