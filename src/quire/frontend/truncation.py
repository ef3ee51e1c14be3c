"""Cutting prompts that are too long, where a request asks for that."""

from __future__ import annotations

from quire.params import SamplingParams


def truncated(ids: list[int], params: SamplingParams, max_model_len: int, default_max_tokens: int | None) -> list[int]:
    """The prompt's tokens, as many as `truncate_prompt_tokens` keeps.

    -1 keeps what leaves room for `max_tokens`, or its default, or for one token where both are open. The left end is
    cut off unless `truncation_side` says otherwise: what was said last matters most to what comes next.
    """
    most = params.truncate_prompt_tokens
    if most == -1:
        most = max(1, max_model_len - (params.max_tokens or default_max_tokens or max(1, params.min_tokens)))
    if most is None or len(ids) <= most:
        return ids
    return ids[:most] if params.truncation_side == "right" else ids[-most:]
