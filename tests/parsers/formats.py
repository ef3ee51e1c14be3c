"""How each family writes calls and thoughts: the other direction of the parsers, as the models' chat templates do it.

A writer takes [(name, arguments), …] and gives the text of the calls.
"""

# ruff: noqa: RUF001 - the wide bars are DeepSeek's own
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from quire.frontend.parsers import Answer, ToolSet
from quire.frontend.parsers.protocol import Parser

Call = tuple[str, dict[str, Any]]
Writer = Callable[[Sequence[Call]], str]


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _objects(key: str, opener: str, closer: str, between: str = "\n") -> Writer:
    return lambda calls: between.join(opener + dumps({"name": n, key: a}) + closer for n, a in calls)


def _listed(key: str, opener: str, closer: str = "") -> Writer:
    return lambda calls: opener + dumps([{"name": n, key: a} for n, a in calls]) + closer


def _python(value: Any) -> str:
    return repr(value)


def _python_calls(calls: Sequence[Call]) -> list[str]:
    return [f"{n}({', '.join(f'{k}={_python(v)}' for k, v in a.items())})" for n, a in calls]


def _pythonic(opener: str = "", closer: str = "") -> Writer:
    return lambda calls: f"{opener}[{', '.join(_python_calls(calls))}]{closer}"


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def _qwen(opener: str, closer: str) -> Writer:
    def one(name: str, arguments: dict[str, Any]) -> str:
        inside = "".join(f"<parameter={k}>\n{_bare(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"{opener}\n<function={name}>\n{inside}</function>\n{closer}"

    return lambda calls: "\n".join(one(*call) for call in calls)


def _minimax(calls: Sequence[Call]) -> str:
    def one(name: str, arguments: dict[str, Any]) -> str:
        inside = "".join(f'<parameter name="{k}">{_bare(v)}</parameter>\n' for k, v in arguments.items())
        return f'<invoke name="{name}">\n{inside}</invoke>\n'

    return "<minimax:tool_call>\n" + "".join(one(*call) for call in calls) + "</minimax:tool_call>"


def _deepseek_v32(calls: Sequence[Call]) -> str:
    def parameter(key: str, value: Any) -> str:
        string = "true" if isinstance(value, str) else "false"
        return f'<｜DSML｜parameter name="{key}" string="{string}">{_bare(value)}</｜DSML｜parameter>\n'

    def one(name: str, arguments: dict[str, Any]) -> str:
        inside = "".join(parameter(k, v) for k, v in arguments.items())
        return f'<｜DSML｜invoke name="{name}">\n{inside}</｜DSML｜invoke>\n'

    return "<｜DSML｜function_calls>\n" + "".join(one(*call) for call in calls) + "</｜DSML｜function_calls>"


def _deepseek(begin: str, end: str) -> Writer:
    def one(name: str, arguments: dict[str, Any]) -> str:
        return f"<｜tool▁call▁begin｜>{begin.format(name)}{dumps(arguments)}{end}<｜tool▁call▁end｜>"

    return lambda calls: "<｜tool▁calls▁begin｜>" + "\n".join(one(*call) for call in calls) + "<｜tool▁calls▁end｜>"


def _glm(calls: Sequence[Call]) -> str:
    def one(name: str, arguments: dict[str, Any]) -> str:
        inside = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{_bare(v)}</arg_value>\n" for k, v in arguments.items())
        return f"<tool_call>{name}\n{inside}</tool_call>"

    return "\n".join(one(*call) for call in calls)


def _kimi(calls: Sequence[Call]) -> str:
    inside = "".join(
        f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{dumps(a)}<|tool_call_end|>"
        for i, (n, a) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"


def _harmony(calls: Sequence[Call]) -> str:
    return "".join(
        f"<|start|>assistant<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{dumps(a)}<|call|>"
        for n, a in calls
    )


def _mistral(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{dumps(a)}" for n, a in calls)


_HERMES = _objects("arguments", "<tool_call>\n", "\n</tool_call>")


def _gemma(opener: str, closer: str, quote: str) -> Writer:
    def value(v: Any) -> str:
        if isinstance(v, str):
            return f"{quote}{v}{quote}"
        if isinstance(v, dict):
            return "{" + ",".join(f"{quote}{k}{quote}:{value(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return "[" + ",".join(map(value, v)) + "]"
        return json.dumps(v)

    def one(name: str, arguments: dict[str, Any]) -> str:
        return f"{opener}call:{name}{{{','.join(f'{k}:{value(v)}' for k, v in arguments.items())}}}{closer}"

    return lambda calls: "".join(one(*call) for call in calls)


def _cohere(calls: Sequence[Call]) -> str:
    listed = [{"tool_call_id": str(i), "tool_name": n, "parameters": a} for i, (n, a) in enumerate(calls)]
    return f"<|START_ACTION|>{json.dumps(listed, ensure_ascii=False, indent=4)}<|END_ACTION|>"


WRITERS: dict[str, list[Writer]] = {
    "cohere_command3": [_cohere],
    "deepseek_v3": [_deepseek("function<｜tool▁sep｜>{}\n```json\n", "\n```")],
    "deepseek_v31": [_deepseek("{}<｜tool▁sep｜>", "")],
    "deepseek_v32": [_deepseek_v32],
    "ernie45": [_HERMES],
    "functiongemma": [_gemma("<start_function_call>", "<end_function_call>", "<escape>")],
    "gemma4": [_gemma("<|tool_call>", "<tool_call|>", '<|"|>')],
    "glm45": [_glm],
    "glm47": [_glm],
    "granite": [_listed("arguments", "<|tool_call|>"), _listed("arguments", "<tool_call>")],
    "granite-20b-fc": [_objects("arguments", "<function_call> ", "")],
    "granite4": [_HERMES],
    "hermes": [_HERMES, _objects("arguments", "<tool_call>", "</tool_call>", "")],
    "hunyuan_a13b": [_listed("arguments", "<tool_calls>", "</tool_calls>")],
    "internlm": [_objects("parameters", "<|action_start|><|plugin|>\n", "<|action_end|>")],
    "jamba": [_listed("arguments", "<tool_calls>\n", "\n</tool_calls>")],
    "json": [
        _objects("arguments", "", ""),
        _listed("parameters", ""),
        _listed("arguments", "```json\n", "\n```"),
        _HERMES,
    ],
    "kimi_k2": [_kimi],
    "lfm2": [_pythonic("<|tool_call_start|>", "<|tool_call_end|>")],
    "llama3_json": [
        _objects("parameters", "", "", "; "),
        lambda calls: "<|python_tag|>" + _objects("parameters", "", "", "; ")(calls),
    ],
    "llama4_json": [_objects("parameters", "", "", "; ")],
    "llama4_pythonic": [_pythonic(), _pythonic("<|python_start|>", "<|python_end|>")],
    "longcat": [_objects("arguments", "<longcat_tool_call>\n", "\n</longcat_tool_call>")],
    "minimax_m2": [_minimax],
    "mistral": [_listed("arguments", "[TOOL_CALLS]"), _listed("arguments", "[TOOL_CALLS] "), _mistral],
    "nemotron_json": [_listed("arguments", "<TOOLCALL>", "</TOOLCALL>")],
    "olmo3": [lambda calls: "<function_calls>\n" + "\n".join(_python_calls(calls)) + "\n</function_calls>"],
    "openai": [_harmony],
    "phi4_mini_json": [
        _listed("arguments", "functools"),
        _listed("arguments", "<|tool_call|>", "<|/tool_call|>"),
    ],
    "pythonic": [_pythonic()],
    "qwen3_coder": [_qwen("<tool_call>", "</tool_call>"), _qwen("", "")],
    "qwen3_xml": [_qwen("<tool_call>", "</tool_call>")],
    "seed_oss": [_qwen("<seed:tool_call>", "</seed:tool_call>")],
    "xlam": [_listed("arguments", "")],
}
CASES = [(name, i) for name, writers in sorted(WRITERS.items()) for i in range(len(writers))]

NEEDS_LINE = frozenset({"json", "llama3_json", "llama4_json", "llama4_pythonic", "pythonic", "xlam"})
"""Formats without markers: a call begins at the start of a line."""
BARE = frozenset({"functiongemma", "gemma4", "glm45", "glm47", "minimax_m2", "qwen3_coder", "qwen3_xml", "seed_oss"})
"""Formats that write values as bare text: the schema tells their types."""

THOUGHTS: dict[str, list[tuple[str, str]]] = {
    "cohere_command3": [
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ],
    "deepseek_r1": [("<think>\n", "\n</think>\n\n"), ("", "\n</think>\n\n")],
    "deepseek_v3": [("<think>", "</think>")],
    "ernie45": [("", "\n</think>\n\n")],
    "gemma4": [("<|channel>thought\n", "<channel|>")],
    "glm45": [("\n<think>", "</think>\n")],
    "glm47": [("<think>", "</think>")],
    "granite": [
        ("Here is my thought process:\n\n", "\n\nHere is my response:\n"),
        ("Here's my thought process: \n", "\nHere's my response: "),
        ("<think>", "</think>"),
    ],
    "holo2": [("<think>\n", "\n</think>\n\n")],
    "hunyuan_a13b": [("<think>\n", "\n</think>\n")],
    "kimi_k2": [("<think>", "</think>")],
    "mimo": [("<think>\n", "\n</think>\n\n")],
    "minimax_m2": [("<think>\n", "\n</think>\n\n"), ("", "\n</think>\n\n")],
    "mistral": [("[THINK]", "[/THINK]"), ("<think>\n", "\n</think>\n")],
    "nemotron_v3": [("<think>\n", "\n</think>\n\n")],
    "olmo3": [("<think>", "</think>\n\n")],
    "openai_gptoss": [("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")],
    "qwen3": [("<think>\n", "\n</think>\n\n")],
    "seed_oss": [("<seed:think>", "</seed:think>")],
    "step3": [("", "</think>")],
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "wind": {"type": "number"},
                    "metric": {"type": "boolean"},
                    "hours": {"type": "array", "items": {"type": "integer"}},
                    "place": {"$ref": "#/$defs/Place"},
                    "note": {"type": ["string", "null"]},
                    "extra": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                },
                "required": ["city"],
                "$defs": {"Place": {"type": "object", "properties": {"inside": {"$ref": "#/$defs/Place"}}}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
    {
        "type": "function",
        "function": {"name": "run-code_2", "parameters": {"properties": {"code": {"type": "string"}}}},
    },
]
KNOWN = ToolSet(TOOLS)


def in_pieces(parser: Parser, text: str, cuts: Sequence[int] | int) -> Answer:
    """What a fresh parser finds in a text that comes in pieces: cut at these places, or of this size."""
    answer = Answer()
    places = range(cuts, len(text), cuts) if isinstance(cuts, int) else sorted(c % (len(text) + 1) for c in cuts)
    start = 0
    for end in (*places, len(text)):
        answer.add(parser.feed(text[start:end]))
        start = end
    answer.add(parser.finish())
    return answer
