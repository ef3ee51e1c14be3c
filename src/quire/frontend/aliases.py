"""Other spellings that are understood: fields by the names that older clients and other servers gave them.

The one place that lists them. An old spelling is the new one, whatever else may be said of the field.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from quire.errors import RequestError

REQUEST_FIELDS: dict[str, str] = {
    "max_completion_tokens": "max_tokens",  # where a request knows only the one
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "n_predict": "max_tokens",
    "no_stop_trim": "include_stop_str_in_output",
    "random_seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "sampling_seed": "seed",
    "stop_sequences": "stop",
    "template_kwargs": "chat_template_kwargs",
}
"""Old → new. An old name that a request type has as a field of its own is no alias there."""

REASONING = ("reasoning", "reasoning_content")
"""Both are written in every message and delta that has reasoning, and either is read in a message that comes in."""


def with_new_names(values: dict[str, Any], known: Collection[str]) -> None:
    """Rename the fields of a request, in place.

    Args:
        values: the request.
        known: the fields of its type.

    Raises:
        RequestError: two spellings of one field say different things.
    """
    for old in [name for name in values if name in REQUEST_FIELDS]:
        new = REQUEST_FIELDS[old]
        if old in known or new not in known:
            continue
        value = values.pop(old)
        if values.setdefault(new, value) != value:
            raise RequestError(f"{old} is another spelling of {new}, and they say different things.", param=old)


def with_both_names(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its reasoning under either name, as templates may read the one or the other."""
    found = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if found is None else {**dict.fromkeys(REASONING, found), **message}
