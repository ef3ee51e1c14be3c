"""What `LLM` returns. The attributes are vLLM's, so scripts that read them move over unchanged."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: 0 .. n - 1.
        text: the new text.
        token_ids: the new tokens, an end token included.
        cumulative_logprob: sum over the chosen tokens, if log-probabilities were asked for.
        logprobs: one entry per token, if asked for.
        finish_reason: stop, length or abort.
        stop_reason: the stop string or stop token id that ended it; None for the model's own end token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[PositionLogprobs] | None
    finish_reason: str | None
    stop_reason: int | str | None

    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        request_id: counts up from "0" within one `LLM`.
        prompt: the prompt's text, None if it was given as token ids.
        prompt_token_ids: the prompt's tokens.
        outputs: n completions.
        finished: always True for what `LLM` returns.
        num_cached_tokens: prompt tokens that the prefix cache gave.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
