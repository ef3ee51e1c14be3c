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


def _never(value: Any) -> bool:
    return False


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(v) and value == v for v in values)


_SAME_WITHOUT: dict[str, Callable[[Any], bool]] = {
    "audio": _never,
    "function_call": _is("none", "auto"),
    "functions": _empty,
    "kv_transfer_params": _never,
    "logits_processors": _empty,
    "modalities": _is(["text"]),
    "prompt_embeds": _never,
    "suffix": _empty,
    "vllm_xargs": _empty,
    "web_search_options": _never,
}


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
