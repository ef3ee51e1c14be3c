"""The requests that are served, field by field; each checks what types cannot say. `decode` makes them of bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from quire.errors import RequestError
from quire.frontend.combinations import adjusted, check_together
from quire.frontend.decode import printable
from quire.frontend.form import notices_of_form, wanted_form
from quire.frontend.media.parts import sources_in
from quire.frontend.parsers import ToolPlan, check_calls_in_messages, plan_tools
from quire.frontend.plain_messages import plain_message
from quire.frontend.templates import RESERVED
from quire.params import SamplingParams
from quire.structured import StructuredOutputsParams

MAX_CHOICES = 16
MAX_MESSAGES = 8192
MAX_PROMPTS = 64
MAX_STOP_BYTES = 256
MAX_TEMPLATE_KWARGS = 32
MAX_TIMEOUT = 86_400
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_SALT = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Request(msgspec.Struct, kw_only=True):
    """What every request has. An explicit null is the same as leaving the field out."""

    model: str | None = None

    def check(self) -> None:
        """What types cannot say.

        Raises:
            RequestError: a count is over its limit, or two fields contradict each other.
        """

    def adjust(self) -> list[str]:
        """Bring values into the range that is served; what was changed, in sentences for the caller."""
        return []


class GenerateRequest(Request, kw_only=True):
    """Fields that chat and text completion share."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    logit_bias: dict[str, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    logprob_token_ids: list[int] | None = None
    thinking_token_budget: int | None = None
    repetition_detection: dict[str, Any] | None = None
    max_tokens: int | None = None
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = None
    priority: int = 0
    cache_salt: str = ""
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    prompt_logprobs: int | None = None
    echo: bool = False
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
    spaces_between_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    request_id: str | None = None
    timeout: float | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    def num_picture_chars(self) -> int:
        """Of its body, those that are pictures."""
        return 0

    def wanted_form(self) -> StructuredOutputsParams | None:
        """What the answer must look like; None if it is free.

        Raises:
            RequestError: the field is not as it should be, or there are two.
        """
        return wanted_form(self)

    def wanted_logprobs(self) -> int | None:
        """How many alternatives to report per token; None for no log-probabilities at all."""
        raise NotImplementedError

    def shown_logprobs(self) -> int | None:
        """How many are shown beside the chosen token's: those of `logprob_token_ids`, or the most likely ones."""
        wanted = self.wanted_logprobs()
        return wanted if wanted is None or not self.logprob_token_ids else len(self.logprob_token_ids)

    def wanted_tokens(self) -> int | None:
        """Most tokens to generate, None if the request does not say."""
        return self.max_tokens

    def wanted_prompt_logprobs(self) -> int | None:
        """The same as `wanted_logprobs`, for the tokens of the prompt."""
        return self.prompt_logprobs

    @property
    def num_candidates(self) -> int:
        """Completions of each prompt that are generated; n of them are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def num_completions(self) -> int:
        """Completions of all prompts together."""
        return self.num_candidates

    @property
    def only_prompt(self) -> bool:
        """Whether the answer is the prompt itself, and nothing is to follow it."""
        return False

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk carries usage."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling_params(self, defaults: Mapping[str, float | int]) -> SamplingParams:
        """How to sample; what the request leaves open comes from `defaults`.

        Raises:
            RequestError: a value is out of range.
        """
        chosen = {name: getattr(self, name) for name in _OPTIONAL_SAMPLING}
        plain = {name: getattr(self, name) for name in _PLAIN_SAMPLING}
        if self.use_beam_search:  # n is the width of the beam then, and nothing is sampled
            chosen["temperature"], plain["n"] = 0, 1
        return SamplingParams(
            **{**defaults, **{name: value for name, value in chosen.items() if value is not None}},
            **plain,
            max_tokens=self.wanted_tokens(),
            logprobs=self.wanted_logprobs(),
            prompt_logprobs=self.wanted_prompt_logprobs(),
            structured_outputs=self.wanted_form(),
        )

    def adjust(self) -> list[str]:
        return [*notices_of_form(self), *adjusted(self)]

    def check(self) -> None:
        _limit("n", self.n, 1, MAX_CHOICES)
        if self.best_of is not None:
            _limit("best_of", self.best_of, self.n, MAX_CHOICES)
        for name, least in (("max_tokens", 0), ("max_completion_tokens", 1)):
            if (most := getattr(self, name, None)) is not None:
                _limit(name, most, least, 2**31 - 1)
        if self.prompt_logprobs is not None:
            _limit("prompt_logprobs", self.prompt_logprobs, -1, 2**31 - 1)
        if self.request_id is not None and not REQUEST_ID.fullmatch(self.request_id):
            raise RequestError("request_id takes 1..128 letters, digits, '_', '.', ':' and '-'.", param="request_id")
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise RequestError(f"timeout must be in (0, {MAX_TIMEOUT}] seconds, got {self.timeout:g}.", "timeout")
        check_together(self)
        for stop in [self.stop] if isinstance(self.stop, str) else self.stop:
            if len(stop.encode()) > MAX_STOP_BYTES:
                raise RequestError(
                    f"A stop string may have {MAX_STOP_BYTES} bytes, got {len(stop.encode())}.", param="stop"
                )
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream=true.", param="stream_options")
        if self.cache_salt and not _SALT.fullmatch(self.cache_salt):
            raise RequestError("cache_salt takes 1..128 letters, digits, '_', '.' and '-'.", param="cache_salt")
        _limit("priority", self.priority, -(2**31), 2**31 - 1)
        self.wanted_form()


_OPTIONAL_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_PLAIN_SAMPLING = (
    "n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "min_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "best_of",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "logprob_token_ids",
    "thinking_token_budget",
    "repetition_detection",
)


class ChatRequest(GenerateRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, str]] = []
    chat_template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    chat_template: str | None = None
    return_prompt_text: bool = False
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def wanted_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=true.", param="top_logprobs")
        _limit("top_logprobs", self.top_logprobs, -1, 2**31 - 1)
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message needs add_generation_prompt=false: the last message is the one to go on with.",
                param="continue_final_message",
            )
        _limit("messages", len(self.messages), 1, MAX_MESSAGES, "messages")
        _check_template_kwargs(self.chat_template_kwargs)
        form = self.wanted_form()
        if self.tool_plan().schema is not None and self.use_beam_search:
            raise RequestError("tool_choice: a beam search cannot be held to a call.", param="tool_choice")
        if self.tool_plan().schema is not None and form is not None:
            raise RequestError(
                f"tool_choice asks for a call and {form.source} for an answer of another form; leave one of them out.",
                param=form.source,
            )
        check_calls_in_messages(self.messages)
        self.messages = [plain_message(message, i) for i, message in enumerate(self.messages)]

    def num_picture_chars(self) -> int:
        return sum(len(source.data) for source in sources_in(self.messages))

    def tool_plan(self) -> ToolPlan:
        """What its tools mean for the answer.

        Raises:
            RequestError: a tool, or the choice among them, is not as it should be.
        """
        return plan_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    def template_kwargs(self) -> dict[str, Any]:
        """Further variables for the template."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **self.chat_template_kwargs}


class CompletionRequest(GenerateRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: Any
    logprobs: int | None = None

    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def wanted_prompt_logprobs(self) -> int | None:
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        counts = [count for count in asked if count is not None]
        return -1 if -1 in counts else max(counts, default=None)

    def wanted_tokens(self) -> int | None:
        return 1 if self.only_prompt else self.max_tokens

    @property
    def only_prompt(self) -> bool:
        return self.echo and self.max_tokens == 0

    def check(self) -> None:
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens must be at least 1; 0 needs echo=true.", param="max_tokens")
        if self.logprobs is not None:
            _limit("logprobs", self.logprobs, -1, 2**31 - 1)
        count = len(self.prompts())
        _limit("prompt", count, 1, MAX_PROMPTS, "prompts")
        for name, each in (("n", self.n), ("best_of", self.num_candidates)):
            if count * each > MAX_PROMPTS:
                raise RequestError(
                    f"{name} times the number of prompts must be at most {MAX_PROMPTS}, got {each} x {count}.",
                    param=name,
                )

    @property
    def num_completions(self) -> int:
        return len(self.prompts()) * self.num_candidates

    def prompts(self) -> list[str | list[int]]:
        """The prompt or prompts, each a text or a list of token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise RequestError("prompt must be text, token ids, or a non-empty list of these.", param="prompt")
        kinds = set(map(type, prompt))
        if kinds == {int}:
            return [prompt]
        if kinds == {str} or (kinds == {list} and all(ids and set(map(type, ids)) == {int} for ids in prompt)):
            return prompt
        raise RequestError(
            "prompt must be text, token ids, a list of texts, or a list of non-empty lists of token ids.",
            param="prompt",
        )


class TokenizeRequest(Request, kw_only=True):
    """POST /tokenize: a text, or a conversation."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool = False

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("Give either prompt or messages.", param="prompt")
        if self.messages is not None:
            _limit("messages", len(self.messages), 1, MAX_MESSAGES, "messages")
        _check_template_kwargs(self.chat_template_kwargs)
        plan_tools(self.tools)
        if self.messages is not None:
            self.messages = [plain_message(message, i) for i, message in enumerate(self.messages)]


class DetokenizeRequest(Request, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]


def _limit(name: str, value: int, low: int, high: int, unit: str = "") -> None:
    if not low <= value <= high:
        raise RequestError(f"{name} must be in {low}..{high}{unit and ' ' + unit}, got {value}.", param=name)


def _check_template_kwargs(kwargs: dict[str, Any]) -> None:
    field = "chat_template_kwargs"
    if len(kwargs) > MAX_TEMPLATE_KWARGS:
        raise RequestError(f"{field} takes {MAX_TEMPLATE_KWARGS} entries, got {len(kwargs)}.", param=field)
    for name, value in kwargs.items():
        if name in RESERVED or name.startswith("_"):
            raise RequestError(f"{field}: {printable(name)!r} is a reserved name.", param=field)
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise RequestError(f"{field}: {printable(name)!r} must be text, a number, true or false.", param=field)
