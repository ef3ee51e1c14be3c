"""From what the engine sent to what `LLM` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quire.frontend.beam import Beam
from quire.frontend.candidates import Chosen, choose
from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta, RequestStream
from quire.frontend.tokenizer import Tokenizer
from quire.messages import TokenLogprobs
from quire.outputs import (
    BeamSearchSequence,
    CompletionOutput,
    Logprob,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
)


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
        outputs = [self.completion(index, one) for index, one in enumerate(chosen)]
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
        scored = request.params.prompt_logprobs is not None
        return RequestOutput(
            request_id=id_,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=outputs,
            finished=finished,
            num_cached_tokens=streams[0].num_cached_tokens,
            prompt_logprobs=[None, *map(self.position, streams[0].prompt_logprobs)] if scored else None,
            metrics=_metrics(streams, outputs, finished=finished),
        )

    def completion(self, index: int, one: Chosen) -> CompletionOutput:
        """One completion."""
        delta = one.delta
        return CompletionOutput(
            index=index,
            text=delta.text,
            token_ids=delta.token_ids,
            cumulative_logprob=one.cumulative_logprob,
            logprobs=[self.position(entry) for entry in delta.logprobs] if delta.logprobs is not None else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def position(self, entry: TokenLogprobs) -> PositionLogprobs:
        """Chosen token first, then the most likely ones."""
        ranks = [entry.rank, *range(1, len(entry.token_ids))]
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
