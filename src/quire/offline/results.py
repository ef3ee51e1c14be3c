"""From what the engine sent to what `LLM` returns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

from quire.frontend.beam import Beam
from quire.frontend.candidates import Chosen, choose
from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta, RequestStream
from quire.frontend.tokenizer import Tokenizer
from quire.messages import TokenLogprobs
from quire.outputs import (
    BeamSearchSequence,
    CompletionOutput,
    FlatLogprobs,
    Logprob,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
)
from quire.params import SamplingParams


class Numbered(NamedTuple):
    """A request under the id that its output will have."""

    id: str
    request: PreparedRequest


class Results:
    """Makes outputs with the texts of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(
        self, id_: str, request: PreparedRequest, streams: Sequence[RequestStream], deltas: Sequence[Delta]
    ) -> RequestOutput:
        """The one output of a request that has ended."""
        chosen = choose(deltas, request.params)
        outputs = [self.completion(index, one, request.params) for index, one in enumerate(chosen)]
        return self.request(id_, request, streams, outputs, finished=True)

    def request(
        self,
        id_: str,
        request: PreparedRequest,
        streams: Sequence[RequestStream],
        outputs: list[CompletionOutput],
        *,
        finished: bool,
    ) -> RequestOutput:
        """An output with these completions in it."""
        params, scores = request.params, None
        if params.prompt_logprobs is not None:
            scores = self._scores([None, *streams[0].prompt_logprobs], flat=params.flat_logprobs)
        return RequestOutput(
            request_id=id_,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=outputs,
            finished=finished,
            num_cached_tokens=streams[0].num_cached_tokens,
            prompt_logprobs=scores,
            metrics=_metrics(streams, outputs, finished=finished),
        )

    def completion(self, index: int, one: Chosen, params: SamplingParams) -> CompletionOutput:
        """One completion."""
        delta, scores = one.delta, None
        if delta.logprobs is not None:
            scores = self._scores(delta.logprobs, flat=params.flat_logprobs, ranked=not params.logprob_token_ids)
        return CompletionOutput(
            index=index,
            text=delta.text,
            token_ids=delta.token_ids,
            cumulative_logprob=one.cumulative_logprob,
            logprobs=scores,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _scores(self, entries: Sequence[TokenLogprobs | None], *, flat: bool, ranked: bool = True) -> Any:
        """Log-probabilities at each position: the chosen token first, then the others, whose ranks may not be known."""
        if not flat:
            return [None if entry is None else self.position(entry, ranked=ranked) for entry in entries]
        found = FlatLogprobs()
        for entry in entries:
            found.append(None if entry is None else self.position(entry, ranked=ranked))
        return found

    def position(self, entry: TokenLogprobs, *, ranked: bool = True) -> PositionLogprobs:
        """Log-probabilities at one position."""
        num_others = len(entry.token_ids) - 1
        ranks = [entry.rank, *(range(1, 1 + num_others) if ranked else repeat(None, num_others))]
        lines = zip(entry.token_ids, entry.logprobs, ranks, strict=True)
        text = self._tokenizer.token_text
        result: PositionLogprobs = {}
        for token, logprob, rank in lines:
            result.setdefault(token, Logprob(logprob, rank, text(token)))
        return result

    def sequence(self, prompt_ids: Sequence[int], beam: Beam, *, keep_end: bool) -> BeamSearchSequence:
        """A hypothesis of a beam search."""
        generated = beam.token_ids[:-1] if beam.end is not None and not keep_end else beam.token_ids
        tokens = [*prompt_ids, *generated]
        return BeamSearchSequence(
            tokens=tokens,
            logprobs=[self.position(entry) for entry in beam.logprobs],
            cum_logprob=beam.cumulative_logprob,
            text=self._tokenizer.decode(tokens, skip_special_tokens=False),
            finish_reason="length" if beam.end is None else "stop",
            stop_reason=beam.end,
        )


def _metrics(
    streams: Sequence[RequestStream], outputs: Sequence[CompletionOutput], *, finished: bool
) -> RequestMetrics:
    first = streams[0]
    begun = bool(first.first_token)
    last = max(stream.last_token for stream in streams)
    return RequestMetrics(
        arrival_time=first.arrival,
        time_in_queue=first.queued_s if begun else None,
        first_scheduled_time=first.arrival + first.queued_s if begun else None,
        first_token_time=min(stream.first_token or last for stream in streams) if begun else None,
        last_token_time=last or None,
        finished_time=last or None if finished else None,
        num_generation_tokens=sum(len(output.token_ids) for output in outputs),
    )
