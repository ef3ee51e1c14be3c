"""What values the fields of sampling may have: the tables, and the checks that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from quire.bounds import RepetitionDetectionParams
from quire.errors import RequestError
from quire.structured import StructuredOutputsParams

MAX_N = 16_384
MAX_LOGPROBS = 20
"""Default of the setting `max_logprobs`."""
MAX_BEAM_WIDTH = 64
MAX_BIASES = 1024
MAX_BAD_WORDS = 128
MAX_LISTED = 128
MIN_TEMPERATURE = 0.01
"""Temperatures in (0, 0.01) divide logits into overflow; they are raised to this, with a warning."""


NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "extra_args": (({},), "there is nothing here that would read it"),
    "prompt_logprob_start": ((0, -1), "prompt_logprobs score the whole prompt"),
    "prompt_logprob_token_ids": (([],), "prompt_logprobs report the most likely tokens"),
    "trace_decode_token_ids": ((False, []), "token_ids of each output are the trace"),
}
"""Fields of vLLM that are not offered: values, besides None, that ask for nothing, and why nothing else passes."""


def normal_bias(bias: Any) -> dict[int, float]:
    """Keys may be texts of digits, as JSON has them."""
    try:
        return {int(token): typed("logit_bias", value, "a number") for token, value in dict(bias or {}).items()}
    except (TypeError, ValueError):
        raise RequestError(
            f"logit_bias must be an object of token ids and numbers, got {str(bias)[:100]}.", param="logit_bias"
        ) from None


def listed(name: str, value: Any) -> list[Any]:
    """None is an empty list; a text is no list of its letters."""
    if type(value) is list:
        return value.copy()
    if value is None:
        return []
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise RequestError(f"{name} must be a list, got {str(value)[:100]!r}.", param=name)
    return list(value)


def _token_ids(ids: Any, most: int) -> bool:
    return isinstance(ids, list) and 1 <= len(ids) <= most and all(type(t) is int and 0 <= t < 2**31 for t in ids)


def typed(name: str, value: Any, kind: str) -> Any:
    """Turn numpy-like numbers into plain ones; refuse booleans, strings, NaN and infinities."""
    if value is None:
        if name in OPTIONAL:
            return None
        raise RequestError(f"{name} must be {kind}, got None.", param=name)
    if isinstance(value, (bool, str, bytes)):
        raise RequestError(f"{name} must be {kind}, got {value!r}.", param=name)
    try:
        if kind == "an integer":
            return value.__index__()
        number = float(value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise RequestError(f"{name} must be {kind}, got {value!r}.", param=name) from None
    if not math.isfinite(number):
        raise RequestError(f"{name} must be a finite number, got {value!r}.", param=name)
    return number


_INTEGERS = (
    *("n", "best_of", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
    *("truncate_prompt_tokens", "stream_interval", "thinking_token_budget"),
)
OPTIONAL = frozenset(
    {
        *("seed", "best_of", "max_tokens", "logprobs", "prompt_logprobs", "allowed_token_ids"),
        *("truncate_prompt_tokens", "skip_reading_prefix_cache"),
        *("logprob_token_ids", "stream_interval", "thinking_token_budget"),
    }
)
KINDS = {
    **dict.fromkeys(_INTEGERS, "an integer"),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), "a number"
    ),
}


def _int64(value: int) -> bool:
    return -(2**63) <= value < 2**63


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n": (lambda v: 1 <= v <= MAX_N, f"in 1..{MAX_N}"),
    "temperature": (lambda v: 0 <= v <= 1e6, "a number >= 0"),
    "top_p": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "top_k": (lambda v: -1 <= v < 2**31, "-1 or 0 (off) or at least 1"),
    "min_p": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "presence_penalty": (lambda v: -2 <= v <= 2, "in [-2, 2]"),
    "frequency_penalty": (lambda v: -2 <= v <= 2, "in [-2, 2]"),
    "repetition_penalty": (lambda v: 1e-6 <= v <= 1e6, "greater than 0"),
    "seed": (_int64, "a 64-bit integer"),
    "stop": (lambda v: len(v) <= 16 and all(isinstance(s, str) and s for s in v), "up to 16 non-empty strings"),
    "stop_token_ids": (
        lambda v: len(v) <= 256 and all(type(t) is int and 0 <= t < 2**31 for t in v),
        "up to 256 token ids (integers >= 0)",
    ),
    "logit_bias": (
        lambda v: len(v) <= MAX_BIASES and all(0 <= t < 2**31 and -100 <= b <= 100 for t, b in v.items()),
        f"up to {MAX_BIASES} token ids, each with a number in [-100, 100]",
    ),
    "allowed_token_ids": (lambda v: _token_ids(v, 1 << 20), "a non-empty list of token ids (integers >= 0)"),
    "bad_words": (
        lambda v: len(v) <= MAX_BAD_WORDS and all(isinstance(s, str) and 0 < len(s) <= 256 for s in v),
        f"up to {MAX_BAD_WORDS} non-empty strings of up to 256 characters",
    ),
    "bad_words_token_ids": (
        lambda v: len(v) <= 2 * MAX_BAD_WORDS and all(_token_ids(ids, 512) for ids in v),
        f"up to {2 * MAX_BAD_WORDS} non-empty lists of token ids",
    ),
    "structured_outputs": (
        lambda v: v is None or isinstance(v, StructuredOutputsParams),
        "a StructuredOutputsParams",
    ),
    "logprob_token_ids": (lambda v: _token_ids(v, MAX_LISTED), f"up to {MAX_LISTED} token ids (integers >= 0)"),
    "stream_interval": (lambda v: 1 <= v < 2**31, "at least 1"),
    "thinking_token_budget": (lambda v: 0 <= v < 2**31, "-1 (no bound) or at least 0"),
    "repetition_detection": (
        lambda v: v is None or isinstance(v, RepetitionDetectionParams),
        "max_pattern_size, min_pattern_size and min_count",
    ),
    "max_tokens": (lambda v: 1 <= v < 2**31, "at least 1"),
    "min_tokens": (lambda v: 0 <= v < 2**31, "at least 0"),
    "best_of": (lambda v: 1 <= v <= MAX_N, f"in n..{MAX_N}"),
    "truncate_prompt_tokens": (lambda v: v == -1 or 1 <= v < 2**31, "-1 (what fits) or at least 1"),
    "truncation_side": (lambda v: v in ("left", "right"), "'left' or 'right'"),
    **dict.fromkeys(("logprobs", "prompt_logprobs"), (lambda v: -1 <= v < 2**31, "-1 (all) or at least 0")),
    **{
        name: (lambda v: isinstance(v, bool), "true or false")
        for name in (
            *("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize", "skip_clone"),
            *("flat_logprobs", "spaces_between_special_tokens", "skip_reading_prefix_cache"),
        )
    },
}

BEAM_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beam_width": (lambda v: 1 <= v <= MAX_BEAM_WIDTH, f"in 1..{MAX_BEAM_WIDTH}"),
    "max_tokens": (lambda v: 1 <= v < 2**31, "at least 1"),
    "temperature": (lambda v: v in (0, 1), "0 or 1: beams are ranked by the model's own log-probabilities"),
    "length_penalty": (lambda v: -10 <= v <= 10, "in [-10, 10]"),
    "ignore_eos": (lambda v: isinstance(v, bool), "true or false"),
    "include_stop_str_in_output": (lambda v: isinstance(v, bool), "true or false"),
}


def describe_range(name: str) -> str | None:
    """What a value of this field must be, in words; None if the type says it all."""
    return RANGES[name][1] if name in RANGES else None
