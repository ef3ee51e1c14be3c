"""SamplingParams: how one request wants its tokens chosen.

Names, defaults and ranges are those of vLLM's class of the same name, so scripts move over unchanged.
Ranges are checked when the object is made; what depends on the model (token ids within the vocabulary,
lengths within the context) is checked in `frontend.validate`.
"""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Any

import msgspec

from quire.bounds import RepetitionDetectionParams, ThinkingLimit, repetition_detection_of
from quire.errors import RequestError
from quire.ranges import BEAM_RANGES, KINDS, MIN_TEMPERATURE, NOT_OFFERED, OPTIONAL, RANGES, listed, normal_bias, typed
from quire.structured import StructuredOutputsParams, structured_outputs_of


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
        logprob_token_ids: up to 128 token ids whose log-probabilities are reported at each position, beside the chosen
            token's, instead of those of the most likely ones; their ranks are not.
        flat_logprobs: log-probabilities come as `FlatLogprobs`, which costs less memory than a list of dicts.
        prompt_logprobs: the same for each token of the prompt but the first.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: False puts no space between special tokens that follow each other.
        detokenize: False returns token ids only.
        truncate_prompt_tokens: keep only so many of the prompt's tokens, >= 1; -1: what fits beside max_tokens.
        truncation_side: which end is cut off, "left" or "right".
        output_kind: what each output of `LLM.stream` holds; `generate` always returns the whole.
        skip_reading_prefix_cache: compute the whole prompt; None does so only where prompt_logprobs are asked for.
        skip_clone: accepted; params are copied where they must be, and never changed.
        stream_interval: tokens in each output of a stream but the first and the last; None is the engine's setting.
        thinking_token_budget: most tokens to think; then the thoughts are closed. -1 and None are no bound.
        thinking_limit: the same in tokens of the model; filled from the budget by whoever has the tokenizer.
        repetition_detection: ends an answer that repeats itself, with the finish reason "repetition".
        extra_args, prompt_logprob_token_ids, prompt_logprob_start, trace_decode_token_ids: not offered; any value but
            the neutral one is refused.
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
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    stream_interval: int | None = None
    thinking_token_budget: int | None = None
    thinking_limit: ThinkingLimit | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    extra_args: Any = None
    prompt_logprob_start: Any = None
    prompt_logprob_token_ids: Any = None
    trace_decode_token_ids: Any = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        given = [name for name, default in _DEFAULTS if getattr(self, name) is not default]
        for name in given:
            if name in NOT_OFFERED:
                _refuse_absent(self, name)
            elif name in KINDS:
                setattr(self, name, typed(name, getattr(self, name), KINDS[name]))
        self._normalise()
        for name in given:
            if name not in RANGES:
                continue
            fits, allowed = RANGES[name]
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL) and not fits(value):
                raise RequestError(f"{name} must be {allowed}, got {repr(value)[:100]}.", param=name)
        self._check_together()

    def _normalise(self) -> None:
        stop: Any = self.stop
        self.stop = [stop] if isinstance(stop, str) else stop
        for name in ("stop", "stop_token_ids", "bad_words", "bad_words_token_ids"):
            setattr(self, name, listed(name, getattr(self, name)))
        self.logit_bias = normal_bias(self.logit_bias)
        if self.seed == -1:
            self.seed = None
        if self.thinking_token_budget == -1:
            self.thinking_token_budget = None
        self.repetition_detection = repetition_detection_of(self.repetition_detection)
        if self.logprob_token_ids is not None:
            self.logprob_token_ids = listed("logprob_token_ids", self.logprob_token_ids) or None
            if self.logprob_token_ids and self.logprobs is None:
                self.logprobs = 0
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
            setattr(self, name, typed(name, getattr(self, name), "an integer"))
        for name in ("temperature", "length_penalty"):
            setattr(self, name, typed(name, getattr(self, name), "a number"))
        for name, (fits, allowed) in BEAM_RANGES.items():
            if not fits(getattr(self, name)):
                raise RequestError(f"{name} must be {allowed}, got {getattr(self, name)!r}.", param=name)


def _refuse_absent(params: SamplingParams, name: str) -> None:
    value = getattr(params, name)
    neutral, reason = NOT_OFFERED[name]
    if not any(type(value) is type(known) and value == known for known in neutral):
        raise RequestError(
            f"{name} is not offered, got {str(value)[:100]}: {reason}; leave it out.",
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


_DEFAULTS = tuple((field.name, field.default) for field in msgspec.structs.fields(SamplingParams))
"""What a request leaves open needs no check; it is the very object that stands here. Lists are made anew each time."""
