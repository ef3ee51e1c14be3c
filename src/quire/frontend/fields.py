"""Request fields that exist elsewhere and not here: which of them would have changed the answer.

One row per field, with the test that a value passes when leaving it out changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Verdict = Literal["absent", "not offered", "harmless"]
ABSENT: Verdict = "absent"
NOT_OFFERED: Verdict = "not offered"
HARMLESS: Verdict = "harmless"


def _empty(value: Any) -> bool:
    return value in ({}, [], "", False)


def _zero(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


def _never(value: Any) -> bool:
    return False


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(v) and value == v for v in values)


_SAME_WITHOUT: dict[str, Callable[[Any], bool]] = {
    "audio": _never,
    "dry_multiplier": _zero,
    "ebnf": _empty,
    "function_call": _is("none", "auto"),
    "functions": _empty,
    "grammar": _empty,
    "input_ids": _empty,
    "json_schema": _empty,
    "kv_transfer_params": _never,
    "logits_processors": _empty,
    "lora_path": _empty,
    "mirostat": _zero,
    "modalities": _is(["text"]),
    "prompt_embeds": _never,
    "regex": _empty,
    "return_hidden_states": _empty,
    "stop_regex": _empty,
    "suffix": _empty,
    "typical_p": _is(1, 1.0),
    "vllm_xargs": _empty,
    "web_search_options": _never,
    "xtc_probability": _zero,
}
INSTEAD = {
    "ebnf": "structured_outputs.grammar",
    "functions": "tools",
    "grammar": "structured_outputs.grammar",
    "input_ids": "prompt of /v1/completions",
    "json_schema": "structured_outputs.json",
    "regex": "structured_outputs.regex",
}
"""What does the same here."""


ELSEWHERE = tuple(_SAME_WITHOUT)
"""Fields that exist elsewhere and would change the answer."""


def known_but_absent(name: str, value: Any) -> Verdict:
    """What it means that we do not have this field.

    Args:
        name: a field that the request type lacks.
        value: not null.

    Returns:
        NOT_OFFERED if the answer would have been different, ABSENT if the caller should be told that it has no
        effect, HARMLESS if the value asks for what happens anyway.
    """
    if name in _SAME_WITHOUT:
        return HARMLESS if _SAME_WITHOUT[name](value) else NOT_OFFERED
    return ABSENT
