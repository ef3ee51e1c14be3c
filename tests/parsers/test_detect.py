"""Parsers found from chat templates. The templates are short ones with the well-known markers of each family, rendered
by our own `ChatTemplate`: what the assistant's turn looks like there is read back by the parsers that were found."""

# ruff: noqa: E501, RUF001 - texts are not broken; the wide bars are DeepSeek's own
from __future__ import annotations

import json
from pathlib import Path

import pytest
from formats import TOOLS

from quire.frontend.parsers import detect, make_parser, plan_tools, read_whole
from quire.frontend.parsers.detect import BY_MODEL_TYPE, REASONING_BY_TEMPLATE, TOOLS_BY_TEMPLATE
from quire.frontend.parsers.reasoning import REASONING_PARSERS
from quire.frontend.parsers.tools import TOOL_PARSERS
from quire.frontend.templates import ChatTemplate

LOOP = "{% for m in messages %}{% if m.role == 'assistant' %}"
CALLS = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
END = "{% endfor %}{% endif %}{% endfor %}{# tools #}"

TEMPLATES: dict[str, tuple[str, str, str | None]] = {
    "qwen2.5": (
        LOOP + "{{ m.content }}" + CALLS + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>' + END,
        "hermes", None,
    ),
    "qwen3": (
        LOOP + "<think>\n{{ m.reasoning }}\n</think>\n\n{{ m.content }}" + CALLS
        + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>' + END,
        "hermes", "qwen3",
    ),
    "qwen3-coder": (
        LOOP + "{{ m.content }}" + CALLS + "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n"
        "</parameter>\n{% endfor %}</function>\n</tool_call>" + END,
        "qwen3_coder", None,
    ),
    "llama3.1": (
        "<|start_header_id|>" * 0 + LOOP + CALLS + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
        "{% if not loop.last %}; {% endif %}" + END + "{# <|python_tag|> #}",
        "llama3_json", None,
    ),
    "mistral": (
        LOOP + "{{ m.content }}[TOOL_CALLS][" + CALLS + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "123456789"}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}{% endfor %}{# tools #}",
        "mistral", None,
    ),
    "magistral": (
        LOOP + "[THINK]{{ m.reasoning }}[/THINK]{{ m.content }}" + CALLS + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}" + END,
        "mistral", "mistral",
    ),
    "deepseek-r1": (
        LOOP + "{# <｜Assistant｜> #}<think>\n{{ m.reasoning }}\n</think>\n\n{{ m.content }}<｜tool▁calls▁begin｜>" + CALLS
        + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```<｜tool▁call▁end｜>{% endfor %}"
        "<｜tool▁calls▁end｜>{% endif %}{% endfor %}",
        "deepseek_v3", "deepseek_r1",
    ),
    "deepseek-v3.1": (
        LOOP + "{# <｜Assistant｜> thinking #}<think>{{ m.reasoning }}</think>{{ m.content }}<｜tool▁calls▁begin｜>" + CALLS
        + "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}"
        "<｜tool▁calls▁end｜>{% endif %}{% endfor %}",
        "deepseek_v31", "deepseek_v3",
    ),
    "granite": (
        LOOP + "{{ m.content }}<|tool_call|>[" + CALLS + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}{% endfor %}{# tools #}",
        "granite", None,
    ),
    "phi-4-mini": (
        LOOP + "{{ m.content }}<|tool_call|>[" + CALLS + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|>{% endif %}{% endfor %}{# tools #}",
        "phi4_mini_json", None,
    ),
    "gpt-oss": (
        LOOP + "<|channel|>analysis<|message|>{{ m.reasoning }}<|end|><|start|>assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>"
        + CALLS + "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>" + END,
        "openai", "openai_gptoss",
    ),
    "glm-4.5": (
        LOOP + "\n<think>{{ m.reasoning }}</think>\n{{ m.content }}" + CALLS + "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}"
        "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>" + END,
        "glm45", "glm45",
    ),
    "kimi-k2": (
        LOOP + "<think>{{ m.reasoning }}</think>{{ m.content }}<|tool_calls_section_begin|>" + CALLS
        + "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>"
        "{% endfor %}<|tool_calls_section_end|>{% endif %}{% endfor %}",
        "kimi_k2", "kimi_k2",
    ),
    "minimax-m2": (
        LOOP + "<think>\n{{ m.reasoning }}\n</think>\n\n{{ m.content }}{# <response> #}\n<minimax:tool_call>\n" + CALLS
        + '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments.items() %}<parameter name="{{ k }}">{{ v }}</parameter>\n{% endfor %}</invoke>\n'
        "{% endfor %}</minimax:tool_call>{% endif %}{% endfor %}",
        "minimax_m2", "minimax_m2",
    ),
    "unknown": (
        LOOP + CALLS + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n' + END,
        "json", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", TEMPLATES)
def test_what_a_template_writes_is_read_back(family: str) -> None:
    source, tool_parser, reasoning_parser = TEMPLATES[family]
    assert detect(source) == (tool_parser, reasoning_parser)
    calls = [("get_weather", {"city": 'Zürich "HB"\\'}), ("run-code_2", {"code": "a = {1: [2]}\nb"})]
    message = {
        "role": "assistant",
        "content": "" if family in ("llama3.1", "unknown") else "Let me look.",
        "reasoning": "A question,\nI think." if reasoning_parser else "",
        "tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls],
    }
    text = ChatTemplate(source, {}).render([message], add_generation_prompt=False)
    parser = make_parser(plan_tools(TOOLS), tool_parser=tool_parser, reasoning_parser=reasoning_parser)
    answer = read_whole(parser, text)
    assert answer.content.strip() == message["content"]
    assert answer.reasoning == message["reasoning"]
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == calls


@pytest.mark.parametrize(
    ("template", "model_type", "architectures", "found"),
    [
        (None, None, None, (None, None)),
        (None, "qwen3", None, ("hermes", "qwen3")),
        (None, None, ["GptOssForCausalLM"], ("openai", "openai_gptoss")),
        (None, "new", ["Qwen2ForCausalLM"], ("hermes", None)),
        ("{{ messages }}", "llama", None, (None, None)),
        ("{{ messages }}{{ tools }}", "llama", None, ("llama3_json", None)),
        ("{{ messages }}{{ tools }}", "new", None, ("json", None)),
        ("{{ tools }}[func_name1(param1=value1)]", "llama", None, ("pythonic", None)),
        ("{{ tools }}<|header_start|>[func_name1(param1=value1)]", "llama4", None, ("llama4_pythonic", None)),
        ('{{ tools }}<|start_header_id|>{"name": ..., "parameters": ...}', "llama", None, ("llama3_json", None)),
        ("<|start_of_role|>Here is my thought process: <|tool_call|>", "granite", None, ("granite", "granite")),
        ("<|START_THINKING|><|START_ACTION|>", "cohere2", None, ("cohere_command3", "cohere_command3")),
        ("<seed:think><seed:tool_call><function=x><parameter=y>", "seed_oss", None, ("seed_oss", "seed_oss")),
        ("</think><｜DSML｜function_calls>", "deepseek_v32", None, ("deepseek_v32", "deepseek_v3")),
    ],
)  # fmt: skip
def test_detect(template: str | None, model_type: str | None, architectures: list[str] | None, found: object) -> None:
    assert detect(template, model_type, architectures) == found


def test_every_name_is_registered() -> None:
    assert {name for _, name in TOOLS_BY_TEMPLATE} <= set(TOOL_PARSERS)
    assert {name for _, name in REASONING_BY_TEMPLATE} <= set(REASONING_PARSERS)
    for tools, reasoning in BY_MODEL_TYPE.values():
        assert tools in TOOL_PARSERS and reasoning in {None, *REASONING_PARSERS}


def test_families_import_no_other_family() -> None:
    for table in (TOOL_PARSERS, REASONING_PARSERS):
        for parser in table.values():
            source = Path(__import__(parser.__module__, fromlist=["x"]).__file__).read_text()
            assert "parsers.tools" not in source and "parsers.reasoning" not in source
