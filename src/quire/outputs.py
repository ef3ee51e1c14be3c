"""What `LLM` returns. The attributes are vLLM's, so scripts that read them move over unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

PositionLogprobs = dict[int, "Logprob"]
"""Token id → its log-probability at one position."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability.

    Attributes:
        logprob: natural logarithm, from the raw logits.
        rank: 1 is the most likely token.
        decoded_token: its text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class FlatLogprobs(Sequence["PositionLogprobs | None"]):
    """Log-probabilities of many positions in a few flat lists. It reads like a list of dicts, of far fewer objects.

    Attributes:
        start_indices, end_indices: of each position in the lists below; an empty range is a None.
        token_ids, logprobs, ranks, decoded_tokens: of all positions, one after the other.
    """

    __slots__ = ("decoded_tokens", "end_indices", "logprobs", "ranks", "start_indices", "token_ids")

    def __init__(self) -> None:
        self.start_indices: list[int] = []
        self.end_indices: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.ranks: list[int | None] = []
        self.decoded_tokens: list[str | None] = []

    def append(self, position: PositionLogprobs | None) -> None:
        """Add the next position."""
        self.start_indices.append(len(self.token_ids))
        for token, entry in (position or {}).items():
            self.token_ids.append(token)
            self.logprobs.append(entry.logprob)
            self.ranks.append(entry.rank)
            self.decoded_tokens.append(entry.decoded_token)
        self.end_indices.append(len(self.token_ids))

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> PositionLogprobs | None: ...

    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...

    def __getitem__(self, index: int | slice) -> PositionLogprobs | FlatLogprobs | None:
        """A position as a dict, or some of them as their like."""
        if isinstance(index, slice):
            found = FlatLogprobs()
            for place in range(*index.indices(len(self))):
                found.append(self[place])
            return found
        places = range(self.start_indices[index], self.end_indices[index])
        if not places:
            return None
        return {self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i]) for i in places}


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: 0 .. n - 1.
        text: the new text.
        token_ids: the new tokens, an end token included.
        cumulative_logprob: sum over the chosen tokens, if log-probabilities were asked for, or best_of.
        logprobs: one entry per token, if asked for.
        finish_reason: stop, length, abort or repetition.
        stop_reason: the stop string or stop token id that ended it; None for the model's own end token.
        lora_request: always None.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[PositionLogprobs] | FlatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    lora_request: None = None

    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds of the monotonic clock; None where they did not.

    Attributes:
        arrival_time: it was handed in.
        time_in_queue: seconds in the engine before its first step.
        first_scheduled_time: arrival and queue together.
        first_token_time, last_token_time: tokens arrived.
        finished_time: its last completion ended.
        num_generation_tokens: of all completions that are returned.
    """

    arrival_time: float
    time_in_queue: float | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_generation_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        request_id: counts up from "0" within one `LLM`.
        prompt: the prompt's text, None if it was given as token ids.
        prompt_token_ids: the prompt's tokens.
        outputs: n completions.
        finished: whether this is the last output; always True for what `LLM.generate` returns.
        num_cached_tokens: prompt tokens that the prefix cache gave.
        prompt_logprobs: one entry per prompt token, None for the first, if asked for.
        metrics: times.
        lora_request, kv_transfer_params: always None.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    prompt_logprobs: list[PositionLogprobs | None] | FlatLogprobs | None = None
    metrics: RequestMetrics | None = None
    lora_request: None = None
    kv_transfer_params: None = None


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis of a beam search.

    Attributes:
        tokens: of the prompt and what follows it; the end token only with include_stop_str_in_output.
        logprobs: of each generated token, the end token included.
        cum_logprob: their sum.
        text: of all tokens, special ones included.
        finish_reason: stop or length.
        stop_reason: the end token's id.
    """

    tokens: list[int]
    logprobs: list[PositionLogprobs]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best hypotheses of one prompt, best first: as many as the beam is wide, where there are so many."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number about the engine, as /metrics names it."""

    name: str
    value: float
