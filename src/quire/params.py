"""SamplingParams: how one request wants its tokens chosen.

Names, defaults and ranges are those of vLLM's class of the same name, so scripts move over unchanged.
Ranges are checked when the object is made; what depends on the model (token ids within the vocabulary,
lengths within the context) is checked in `frontend.validate`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from quire.errors import RequestError
from quire.structured import StructuredOutputsParams, structured_outputs_of

MAX_N = 16_384
MAX_LOGPROBS = 20
"""Default of the setting `max_logprobs`."""
MAX_BEAM_WIDTH = 64
MAX_BIASES = 1024
MAX_BAD_WORDS = 128
MIN_TEMPERATURE = 0.01
"""Temperatures in (0, 0.01) divide logits into overflow; they are raised to this, with a warning."""


class RequestOutputKind(IntEnum):
    """What each output of a stream holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the one before."""
    FINAL_ONLY = 2
    """There is one, at the end."""


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sampling and stopping rules of one request.

    Args:
        n: number of completions for the prompt, 1..16384; 1 when greedy.
        best_of: generate this many, at least n, and return the n of highest cumulative log-probability; None is n.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; keep the smallest set of tokens with at least this probability mass.
        top_k: keep the k most likely tokens; 0 and -1 keep all.
        min_p: in [0, 1]; drop tokens less likely than min_p times the most likely one.
        presence_penalty: in [-2, 2]; subtracted once from tokens that were generated before.
        frequency_penalty: in [-2, 2]; subtracted per earlier generated occurrence.
        repetition_penalty: > 0; divides positive and multiplies negative logits of tokens seen in prompt or output.
        seed: int64 for reproducible sampling; None and -1 draw a fresh one.
        stop: up to 16 strings that end the text; cut from it unless include_stop_str_in_output.
        stop_token_ids: token ids that end the text, besides the model's own end tokens.
        ignore_eos: generate past the model's end tokens.
        include_stop_str_in_output: keep the stop string, or stop token, in the text.
        max_tokens: most tokens to generate, >= 1; None fills the context.
        min_tokens: no end token is sampled before this many.
        logit_bias: token id to a number in [-100, 100] that is added to its logit; up to 1024 of them.
        allowed_token_ids: no other token is sampled; None allows all.
        bad_words: up to 128 texts that are not generated: of each, the last token is held back where the others stand.
        bad_words_token_ids: the same as token ids; filled from bad_words by whoever has the tokenizer.
        logprobs: report this many most likely tokens at each position, and the chosen one; -1 means all.
            At most `max_logprobs`, a setting of the engine.
        prompt_logprobs: the same for each token of the prompt but the first.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: False puts no space between special tokens that follow each other.
        detokenize: False returns token ids only.
        truncate_prompt_tokens: keep only so many of the prompt's tokens, >= 1; -1: what fits beside max_tokens.
        truncation_side: which end is cut off, "left" or "right".
        output_kind: what each output of `LLM.stream` holds; `generate` always returns the whole.
        skip_reading_prefix_cache: compute the whole prompt; None does so only where prompt_logprobs are asked for.
        skip_clone: accepted; params are copied where they must be, and never changed.
        extra_args, flat_logprobs, logprob_token_ids, prompt_logprob_token_ids, prompt_logprob_start,
        repetition_detection, stream_interval, thinking_token_budget, trace_decode_token_ids: not offered; any value
            but the neutral one is refused.
        structured_outputs: what the answer must look like; None leaves it free.

    Raises:
        RequestError: naming the field, the value seen and its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    bad_words_token_ids: list[list[int]] = []
    logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    best_of: int | None = None
    prompt_logprobs: int | None = None
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_reading_prefix_cache: bool | None = None
    skip_clone: bool = False
    extra_args: Any = None
    flat_logprobs: Any = None
    logprob_token_ids: Any = None
    prompt_logprob_start: Any = None
    prompt_logprob_token_ids: Any = None
    repetition_detection: Any = None
    stream_interval: Any = None
    thinking_token_budget: Any = None
    trace_decode_token_ids: Any = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        given = [name for name, default in _DEFAULTS if getattr(self, name) is not default]
        for name in given:
            if name in _NEUTRAL:
                _refuse_absent(self, name)
            elif name in _KINDS:
                setattr(self, name, _typed(name, getattr(self, name), _KINDS[name]))
        self._normalise()
        for name in given:
            if name not in _RANGES:
                continue
            fits, allowed = _RANGES[name]
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not fits(value):
                raise RequestError(f"{name} must be {allowed}, got {value!r}.", param=name)
        self._check_together()

    def _normalise(self) -> None:
        stop: Any = self.stop
        self.stop = [stop] if isinstance(stop, str) else stop
        for name in ("stop", "stop_token_ids", "bad_words", "bad_words_token_ids"):
            setattr(self, name, _listed(name, getattr(self, name)))
        self.logit_bias = _normal_bias(self.logit_bias)
        if self.seed == -1:
            self.seed = None
        self.output_kind = _output_kind(self.output_kind)
        if isinstance(self.structured_outputs, dict):
            self.structured_outputs = structured_outputs_of(self.structured_outputs)
        if 0 < self.temperature < MIN_TEMPERATURE:
            warnings.warn(
                f"temperature {self.temperature} is raised to {MIN_TEMPERATURE}; use 0 for greedy.", stacklevel=4
            )
            self.temperature = MIN_TEMPERATURE

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens must be in 0..max_tokens ({self.max_tokens}), got {self.min_tokens}.", param="min_tokens"
            )
        for name in ("n", "best_of"):
            count = getattr(self, name)
            if self.greedy and count is not None and count > 1:
                raise RequestError(
                    f"{name} must be 1 when temperature is 0 (all completions would be equal), got {count}.", param=name
                )
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of must be at least n ({self.n}), got {self.best_of}.", param="best_of")
        if self.stop and not self.detokenize:
            raise RequestError("stop strings need detokenize=True.", param="stop")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def num_candidates(self) -> int:
        """Completions to generate, of which n are returned."""
        return self.n if self.best_of is None else self.best_of

    def clone(self) -> SamplingParams:
        """A copy that can be changed without touching this one."""
        return SamplingParams(**{name: getattr(self, name) for name in self.__struct_fields__})


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """How `LLM.beam_search` looks for the most likely continuation.

    Args:
        beam_width: hypotheses that are kept, 1..64.
        max_tokens: most tokens to generate.
        ignore_eos: generate past the model's end tokens.
        temperature: 0 or 1: hypotheses are ranked by the model's own log-probabilities.
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty; the prompt counts.
        include_stop_str_in_output: keep the end token.

    Raises:
        RequestError: naming the field, the value seen and its range.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            setattr(self, name, _typed(name, getattr(self, name), "an integer"))
        for name in ("temperature", "length_penalty"):
            setattr(self, name, _typed(name, getattr(self, name), "a number"))
        for name, (fits, allowed) in _BEAM_RANGES.items():
            if not fits(getattr(self, name)):
                raise RequestError(f"{name} must be {allowed}, got {getattr(self, name)!r}.", param=name)


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "extra_args": ({},),
    "flat_logprobs": (False,),
    "logprob_token_ids": ([],),
    "prompt_logprob_start": (0, -1),
    "prompt_logprob_token_ids": ([],),
    "repetition_detection": (),
    "stream_interval": (1,),
    "thinking_token_budget": (-1,),
    "trace_decode_token_ids": (False, []),
}
"""Fields of vLLM that are not offered, with the values, besides None, that ask for nothing."""


def _refuse_absent(params: SamplingParams, name: str) -> None:
    value = getattr(params, name)
    if not any(type(value) is type(known) and value == known for known in _NEUTRAL[name]):
        raise RequestError(
            f"{name} is not offered yet, got {str(value)[:100]}; leave it out.",
            param=name,
            code="unsupported_parameter",
        )
    setattr(params, name, None)


def _output_kind(kind: Any) -> RequestOutputKind:
    """A member, its number, or its name."""
    if type(kind) is RequestOutputKind:
        return kind
    try:
        return RequestOutputKind[kind] if isinstance(kind, str) else RequestOutputKind(kind)
    except (KeyError, ValueError):
        names = ", ".join(RequestOutputKind.__members__)
        raise RequestError(f"output_kind must be one of {names}, got {kind!r}.", param="output_kind") from None


def _normal_bias(bias: Any) -> dict[int, float]:
    """Keys may be texts of digits, as JSON has them."""
    try:
        return {int(token): _typed("logit_bias", value, "a number") for token, value in dict(bias or {}).items()}
    except (TypeError, ValueError):
        raise RequestError(
            f"logit_bias must be an object of token ids and numbers, got {str(bias)[:100]}.", param="logit_bias"
        ) from None


def _listed(name: str, value: Any) -> list[Any]:
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


def _typed(name: str, value: Any, kind: str) -> Any:
    """Turn numpy-like numbers into plain ones; refuse booleans, strings, NaN and infinities."""
    if value is None:
        if name in _OPTIONAL:
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
    "truncate_prompt_tokens",
)
_OPTIONAL = frozenset(
    {
        *("seed", "best_of", "max_tokens", "logprobs", "prompt_logprobs", "allowed_token_ids"),
        *("truncate_prompt_tokens", "skip_reading_prefix_cache"),
    }
)
_KINDS = {
    **dict.fromkeys(_INTEGERS, "an integer"),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), "a number"
    ),
}


def _int64(value: int) -> bool:
    return -(2**63) <= value < 2**63


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
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
            *("spaces_between_special_tokens", "skip_reading_prefix_cache"),
        )
    },
}

_BEAM_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beam_width": (lambda v: 1 <= v <= MAX_BEAM_WIDTH, f"in 1..{MAX_BEAM_WIDTH}"),
    "max_tokens": (lambda v: 1 <= v < 2**31, "at least 1"),
    "temperature": (lambda v: v in (0, 1), "0 or 1: beams are ranked by the model's own log-probabilities"),
    "length_penalty": (lambda v: -10 <= v <= 10, "in [-10, 10]"),
    "ignore_eos": (lambda v: isinstance(v, bool), "true or false"),
    "include_stop_str_in_output": (lambda v: isinstance(v, bool), "true or false"),
}

_DEFAULTS = tuple((field.name, field.default) for field in msgspec.structs.fields(SamplingParams))
"""What a request leaves open needs no check; it is the very object that stands here. Lists are made anew each time."""


def describe_range(name: str) -> str | None:
    """What a value of this field must be, in words; None if the type says it all."""
    return _RANGES[name][1] if name in _RANGES else None
