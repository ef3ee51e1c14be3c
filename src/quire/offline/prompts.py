"""The forms in which `LLM` takes prompts and parameters.

"text"   [1, 2, 3]   {"prompt": "text"}   {"prompt_token_ids": [1, 2, 3]}   one of these, or a list of them
{"prompt": "USER: <image> ...", "multi_modal_data": {"image": IMAGE or [IMAGE, ...]}}
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from quire.errors import RequestError
from quire.frontend.media import Source
from quire.frontend.media.parts import source_of

Prompt = str | Sequence[int] | Mapping[str, Any]
T = TypeVar("T")

_NOT_OFFERED = {
    "prompt_embeds": "prompts are text or token ids",
    "encoder_prompt": "encoder-decoder models are not offered",
    "decoder_prompt": "encoder-decoder models are not offered",
    "multi_modal_uuids": "pictures are known by what is in them",
    "mm_processor_kwargs": "pictures are made ready as the checkpoint says",
}


_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "multi_modal_data")


class Unwrapped(NamedTuple):
    """One prompt: what is run, the text that came with token ids, its cache salt, and its pictures."""

    prompt: str | Sequence[int]
    text: str | None = None
    cache_salt: str = ""
    pictures: tuple[Source, ...] = ()


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts from one or many; a flat list of integers is one prompt.

    Raises:
        RequestError: it is neither.
    """
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not hasattr(prompts, "__iter__"):
        raise RequestError(
            f"prompts must be text, token ids, a dict, or a list of these, got {prompts!r}.", param="prompts"
        )
    items = list(prompts)
    if items and not isinstance(items[0], (str, Mapping, Sequence)) and not hasattr(items[0], "__len__"):
        return [cast(Prompt, items)]
    return cast(list[Prompt], items)


def unwrap(prompt: Prompt) -> Unwrapped:
    """One prompt in its parts.

    Raises:
        RequestError: a key that is not offered, or none that says what the prompt is.
    """
    if not isinstance(prompt, Mapping):
        return Unwrapped(prompt)
    for key, value in prompt.items():
        if key in _KEYS or (key in _NOT_OFFERED and not value):
            continue
        reason = _NOT_OFFERED.get(str(key), f"there are {', '.join(_KEYS)}")
        raise RequestError(f"{key!r} in a prompt: {reason}.", param="prompts", code="unsupported_parameter")
    ids, text, salt = prompt.get("prompt_token_ids"), prompt.get("prompt"), prompt.get("cache_salt") or ""
    if ids is None and text is None:
        raise RequestError(
            f"A prompt dict needs 'prompt' or 'prompt_token_ids', got {sorted(map(str, prompt))}.", param="prompts"
        )
    if not isinstance(text, str | None) or not isinstance(salt, str) or isinstance(ids, str):
        raise RequestError("'prompt' and 'cache_salt' must be text, 'prompt_token_ids' integers.", param="prompts")
    pictures = _pictures(prompt.get("multi_modal_data"))
    return Unwrapped(text or "", None, salt, pictures) if ids is None else Unwrapped(ids, text, salt, pictures)


def _pictures(data: Any) -> tuple[Source, ...]:
    """What `multi_modal_data` holds: {"image": one or several of them}.

    Raises:
        RequestError: it holds anything else.
    """
    field = "multi_modal_data"
    if not data:
        return ()
    if not isinstance(data, Mapping):
        raise RequestError(
            f"{field} must be a dict such as {{'image': IMAGE}}, got {type(data).__name__}.", param=field
        )
    others = [str(key) for key, value in data.items() if key != "image" and value]
    if others:
        raise RequestError(f"{field} takes 'image', got {others[0][:40]!r}.", param=field, code="unsupported_content")
    given = data.get("image")
    if given is None:
        return ()
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(source_of({"type": "image", "image": one}, f"{field}.image[{i}]") for i, one in enumerate(several))


def one_each(given: T | Sequence[T] | None, count: int, default: T, name: str) -> Sequence[T]:
    """One value for each prompt, from one for all, one each, or none.

    Raises:
        RequestError: neither one nor as many as there are prompts.
    """
    if given is None:
        return [default] * count
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"{count} prompts but {len(given)} {name}.", param=name)
    return given


def refuse_lora(request: Any) -> None:
    """Adapters are not offered yet; None is what everyone else passes."""
    if request is not None:
        raise RequestError("lora_request: adapters are not offered yet; leave it out.", param="lora_request")


def refuse_content(content_format: str, mm_processor_kwargs: Any) -> None:
    """The format of messages' content is found from the template, and pictures are made ready in one way."""
    if content_format not in ("auto", "string"):
        raise RequestError(
            f"chat_template_content_format must be 'auto' or 'string', got {content_format!r}.",
            param="chat_template_content_format",
        )
    if mm_processor_kwargs:
        raise RequestError(
            "mm_processor_kwargs: pictures are made ready as the checkpoint says; leave it out.",
            param="mm_processor_kwargs",
        )


def warn_priority(priorities: Sequence[int], by_priority: bool) -> None:
    """Say that a priority has no effect on an engine that serves first come, first."""
    if not by_priority and any(priorities):
        warnings.warn("priority has no effect here: use LLM(scheduling_policy='priority').", stacklevel=4)
