"""Names of vLLM's `LLM` that are not offered here: what they are told, so that nobody has to guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quire.config import ENGINE_GROUPS, fields_of
from quire.errors import ConfigError, RequestError

_POOLING = "this engine runs models that generate text, none that embed, classify or score"
_DEVICE_CODE = "the model runs in another process, which takes no code from this one"
_WEIGHTS = "weights are read once, at the start; make a new LLM"

ABSENT_METHODS: dict[str, str] = {
    **dict.fromkeys(("embed", "encode", "classify", "score", "reward"), _POOLING),
    **dict.fromkeys(("collective_rpc", "apply_model"), _DEVICE_CODE),
    **dict.fromkeys(
        ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"), _WEIGHTS
    ),
    **dict.fromkeys(("sleep", "wake_up"), "use close(), which gives back all memory, and make a new LLM"),
    **dict.fromkeys(("start_profile", "stop_profile"), "profile the engine's process from outside, for example py-spy"),
    "set_tokenizer": "name the tokenizer at the start: LLM(model, tokenizer=FOLDER)",
}

_SAME_WITHOUT: dict[str, tuple[Any, ...]] = {
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "task": ("auto", "generate"),
    "skip_tokenizer_init": (False,),
    "allowed_local_media_path": ("",),
    "cpu_offload_gb": (0,),
    "disable_custom_all_reduce": (False, True),
    "disable_log_stats": (False, True),
    "hf_token": (None,),
    "compilation_config": (None, {}),
    "logits_processors": (None, []),
    "speculative_config": (None,),
    "spec_method": (None,),
    "spec_model": (None,),
    "spec_tokens": (None,),
    "mm_processor_kwargs": (None, {}),
    "override_generation_config": (None, {}),
    "pooler_config": (None,),
    "enable_lora": (False,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "distributed_executor_backend": (None, "mp", "uni"),
}
"""Arguments of vLLM's LLM that are no settings here, with the values that change nothing."""


def without_neutral(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, without those that ask for what happens anyway.

    Raises:
        ConfigError: one asks for what is not offered.
    """
    known = {name for group in ENGINE_GROUPS.values() for name in fields_of(group)}
    kept = {}
    for name, value in settings.items():
        if name in known or name not in _SAME_WITHOUT:
            kept[name] = value
        elif not any(value == neutral for neutral in _SAME_WITHOUT[name]):
            raise ConfigError(f"LLM({name}={value!r}): {name} is not offered yet; leave it out.")
    return kept


def refusal(name: str) -> Callable[..., Any]:
    """A method that says why it does nothing."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RequestError(f"LLM.{name} is not offered: {ABSENT_METHODS[name]}.", code="unsupported")

    method.__name__ = name
    method.__doc__ = f"Not offered: {ABSENT_METHODS[name]}."
    return method
