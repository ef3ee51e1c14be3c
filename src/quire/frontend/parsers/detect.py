"""Which parsers a model needs, found from its chat template; from its type where the template does not show it.

A template holds the markers that the model was trained on, so they are looked for, in order: a row matches if all of
its texts are in the template.
"""

# ruff: noqa: RUF001 - the wide bars are DeepSeek's own
from __future__ import annotations

from collections.abc import Iterable, Sequence

Row = tuple[tuple[str, ...], str]

TOOLS_BY_TEMPLATE: Sequence[Row] = (
    (("<|channel|>", "<|message|>"), "openai"),
    (("｜DSML｜",), "deepseek_v32"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<arg_key>",), "glm45"),
    (("<function=", "<parameter="), "qwen3_coder"),
    (("<longcat_tool_call>",), "longcat"),
    (("<TOOLCALL>",), "nemotron_json"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<function_calls>",), "olmo3"),
    (("functools[",), "phi4_mini_json"),
    (("<|/tool_call|>",), "phi4_mini_json"),
    (("<|tool_call>", "<tool_call|>"), "gemma4"),
    (("<start_function_call>",), "functiongemma"),
    (("<|/tool|>",), "phi4_mini_json"),
    (("<|tool_call|>",), "granite"),
    (("<|START_ACTION|>",), "cohere_command3"),
    (("<|action_start|>",), "internlm"),
    (("<function_call>",), "granite-20b-fc"),
    (("<tool_calls>",), "hunyuan_a13b"),
    (("<tool_call>",), "hermes"),
    (("func_name1(", "<|header_start|>"), "llama4_pythonic"),
    (("func_name1(",), "pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (("<|start_header_id|>", '"parameters"'), "llama3_json"),
    (("<|header_start|>", '"parameters"'), "llama4_json"),
    (("<|header_start|>", "tools"), "llama4_pythonic"),
)

REASONING_BY_TEMPLATE: Sequence[Row] = (
    (("<|channel|>", "<|message|>"), "openai_gptoss"),
    (("[THINK]",), "mistral"),
    (("<|channel>thought", "<channel|>"), "gemma4"),
    (("<seed:think>",), "seed_oss"),
    (("Here is my thought process",), "granite"),
    (("<think>", "<response>", "<|start_of_role|>"), "granite"),
    (("<|START_THINKING|>",), "cohere_command3"),
    (("</think>", "<answer>"), "hunyuan_a13b"),
    (("</think>", "<|tool_calls_section_begin|>"), "kimi_k2"),
    (("</think>", "<minimax:tool_call>"), "minimax_m2"),
    (("</think>", "<arg_key>"), "glm45"),
    (("</think>", "｜DSML｜"), "deepseek_v3"),
    (("</think>", "<｜Assistant｜>", "thinking"), "deepseek_v3"),
    (("</think>", "<｜Assistant｜>"), "deepseek_r1"),
    (("</think>",), "qwen3"),
    (("<think>",), "qwen3"),
)

BY_MODEL_TYPE: dict[str, tuple[str | None, str | None]] = {
    "cohere2": ("cohere_command3", "cohere_command3"),
    "deepseek_v3": ("deepseek_v3", None),
    "deepseek_v32": ("deepseek_v32", "deepseek_v3"),
    "gemma4": ("gemma4", "gemma4"),
    "gemma3": ("pythonic", None),
    "gemma3_text": ("pythonic", None),
    "glm4_moe": ("glm45", "glm45"),
    "gpt_oss": ("openai", "openai_gptoss"),
    "granite": ("granite", None),
    "granitemoe": ("granite", None),
    "granitemoehybrid": ("granite4", None),
    "hunyuan_v1_moe": ("hunyuan_a13b", "hunyuan_a13b"),
    "internlm2": ("internlm", None),
    "jamba": ("jamba", None),
    "kimi_k2": ("kimi_k2", "kimi_k2"),
    "lfm2": ("lfm2", None),
    "llama": ("llama3_json", None),
    "llama4": ("llama4_pythonic", None),
    "longcat_flash": ("longcat", None),
    "minimax_m2": ("minimax_m2", "minimax_m2"),
    "ministral": ("mistral", None),
    "ministral3": ("mistral", None),
    "mistral": ("mistral", None),
    "mistral3": ("mistral", None),
    "mixtral": ("mistral", None),
    "olmo3": ("olmo3", "olmo3"),
    "phi3": ("phi4_mini_json", None),
    "qwen2": ("hermes", None),
    "qwen2_moe": ("hermes", None),
    "qwen3": ("hermes", "qwen3"),
    "qwen3_moe": ("hermes", "qwen3"),
    "qwen3_next": ("hermes", "qwen3"),
    "seed_oss": ("seed_oss", "seed_oss"),
}

_BY_ARCHITECTURE = {
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "DeepseekV32ForCausalLM": "deepseek_v32",
    "Glm4MoeForCausalLM": "glm4_moe",
    "GptOssForCausalLM": "gpt_oss",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "Llama4ForConditionalGeneration": "llama4",
    "MistralForCausalLM": "mistral",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}

GENERIC = "json"


def detect(
    chat_template: str | None, model_type: str | None = None, architectures: Iterable[str] | None = None
) -> tuple[str | None, str | None]:
    """The names of the tool parser and of the reasoning parser.

    Args:
        chat_template: its source; None if there is none.
        model_type: as in config.json.
        architectures: likewise; looked at where the type is unknown.

    Returns:
        None for reasoning where nothing shows that the model thinks apart; None for tools where the template does not
        take any. A template that takes tools and shows no known format gets `json`.
    """
    by_type = _by_type(model_type, architectures)
    if chat_template is None:
        return by_type
    tools = _by_template(chat_template, TOOLS_BY_TEMPLATE)
    reasoning = _by_template(chat_template, REASONING_BY_TEMPLATE)
    if tools is None and "tools" in chat_template:
        tools = by_type[0] or GENERIC
    return tools, reasoning


def _by_template(template: str, rows: Sequence[Row]) -> str | None:
    return next((name for texts, name in rows if all(text in template for text in texts)), None)


def _by_type(model_type: str | None, architectures: Iterable[str] | None) -> tuple[str | None, str | None]:
    kinds = [model_type, *(_BY_ARCHITECTURE.get(name) for name in architectures or ())]
    return next((BY_MODEL_TYPE[kind] for kind in kinds if kind in BY_MODEL_TYPE), (None, None))
