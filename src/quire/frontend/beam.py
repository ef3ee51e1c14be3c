"""Beam search: the most likely continuation, found by keeping the best few beginnings at each step.

    beams [width] ──► one token each, with its 2 * width most likely ones ──► candidates ──► the best `width` go on
                                                                        └──► those with an end token are done

Every step of every beam is a request of one token. Their prompts begin alike, so the prefix cache holds all but the
last block of each; without it each step computes the whole again.

The rules are vLLM's: an end token completes a hypothesis wherever it ranks among a beam's candidates, and costs no
place in the beam; the search goes on until nothing is left to go on with or max_tokens is reached; what counts at the
end is log-probability / (prompt and output tokens, without the end token) ** length_penalty.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import RequestStream
from quire.messages import TokenLogprobs
from quire.params import BeamSearchParams, SamplingParams


@dataclass(frozen=True, slots=True)
class Beam:
    """A hypothesis.

    Attributes:
        token_ids: generated ones, the end token included.
        logprobs: one entry per token: the token itself first, then the most likely ones.
        cumulative_logprob: their sum.
        end: the end token, None if there is none.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    cumulative_logprob: float = 0.0
    end: int | None = None

    def extended(self, token_id: int, logprob: float, entry: TokenLogprobs, end: int | None) -> Beam:
        """The hypothesis with one token more."""
        return Beam(
            (*self.token_ids, token_id), (*self.logprobs, entry), self.cumulative_logprob + logprob, end
        )  # fmt: skip

    def score(self, num_prompt: int, length_penalty: float) -> float:
        """What hypotheses are ranked by at the end."""
        length = num_prompt + len(self.token_ids) - (self.end is not None)
        return float(self.cumulative_logprob / length**length_penalty)


async def beam_search(service: TextService, prepared: PreparedRequest, params: BeamSearchParams) -> list[Beam]:
    """The best hypotheses, best first, at most `beam_width` of them.

    Args:
        service: whose engine runs the steps.
        prepared: the prompt; its params' `max_tokens` is the length limit, its stop tokens end a hypothesis.

    Raises:
        RequestFailedError, EngineDeadError: the engine could not run a step.
    """
    beams, done = [Beam()], list[Beam]()
    ends = frozenset(prepared.stop_token_ids)
    observer = service.observer(prepared)
    reason = "error"
    try:
        for _ in range(prepared.params.max_tokens or 1):
            found = await _step(service, prepared, beams, params.beam_width)
            if observer:
                observer.on_tokens(time.monotonic(), 1, 0.0)
            candidates = [new for beam, entry in zip(beams, found, strict=True) for new in _grown(beam, entry, ends)]
            done += [beam for beam in candidates if beam.end is not None]
            going = (beam for beam in candidates if beam.end is None)
            beams = nlargest(params.beam_width, going, key=lambda beam: beam.cumulative_logprob)
            if not beams:
                break
        reason = "stop" if not beams else "length"
    except asyncio.CancelledError:
        reason = "abort"
        raise
    finally:
        if observer:
            observer.on_finish(time.monotonic(), reason)
    num_prompt = len(prepared.prompt_ids)
    return nlargest(params.beam_width, [*done, *beams], key=lambda beam: beam.score(num_prompt, params.length_penalty))


def _grown(beam: Beam, entry: TokenLogprobs, ends: frozenset[int]) -> list[Beam]:
    """A beam with each of its most likely next tokens. Entry 0 is what the engine chose: the first of these again."""
    grown = []
    for rank in range(1, len(entry.token_ids)):
        token_id, logprob = entry.token_ids[rank], entry.logprobs[rank]
        chosen = TokenLogprobs([token_id, *entry.token_ids[1:]], [logprob, *entry.logprobs[1:]], rank)
        grown.append(beam.extended(token_id, logprob, chosen, token_id if token_id in ends else None))
    return grown


async def _step(
    service: TextService, prepared: PreparedRequest, beams: Sequence[Beam], width: int
) -> list[TokenLogprobs]:
    """The most likely next tokens of each beam."""
    params = SamplingParams(
        temperature=0, max_tokens=1, logprobs=min(2 * width, service.vocab_size), seed=0, detokenize=False
    )
    streams: list[RequestStream] = []
    try:
        for beam in beams:
            stream = RequestStream()
            service.client.submit(
                [*prepared.prompt_ids, *beam.token_ids],
                params,
                stream,
                stop_token_ids=[],
                priority=prepared.priority,
                cache_salt=prepared.cache_salt,
                tenant=prepared.tenant,
                start_by=prepared.start_by if not beam.token_ids else 0.0,
                pictures=prepared.pictures,
            )
            streams.append(stream)
        deltas = [await stream.collect() for stream in streams]
    finally:
        for stream in streams:
            stream.close()
    return [delta.logprobs[0] for delta in deltas if delta.logprobs]
