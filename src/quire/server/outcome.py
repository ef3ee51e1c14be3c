"""From running requests to the choices of an answer: the best of several candidates, or what a beam search found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quire.frontend.beam import Beam, beam_search
from quire.frontend.candidates import choose
from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta
from quire.params import BeamSearchParams

if TYPE_CHECKING:
    from quire.server.generate import Call

LONG_PROMPT = 1000
"""Scored positions from which an answer is made in a thread: about 10 ms of work with 20 log-probabilities each."""


async def made(call: Call[Any], make: Callable[[], bytes]) -> bytes:
    """Bytes for the client; made in a thread where the scores of a long prompt may be in them, so that nobody waits."""
    if sum(len(stream.prompt_logprobs) for stream in call.streams) > LONG_PROMPT:
        return await asyncio.to_thread(make)
    return make()


async def collected(call: Call[Any]) -> tuple[list[Delta], int]:
    """The choices, and how many tokens were generated for them: also those of candidates that are not returned."""
    deltas = [await stream.collect() for stream in call.streams]
    count, chosen = call.request.num_candidates, list[Delta]()
    for place, prepared in enumerate(call.prepared):
        own = deltas[place * count : (place + 1) * count]
        chosen += [one.delta for one in choose(own, prepared.params)]
    return chosen, sum(len(delta.token_ids) for delta in deltas)


async def found_by_beams(call: Call[Any]) -> tuple[list[Delta], int]:
    """The best hypotheses of each prompt as choices, and how many tokens they have; n is the width of the beam."""

    async def search(prepared: PreparedRequest) -> list[Delta]:
        params = BeamSearchParams(
            beam_width=call.request.n,
            max_tokens=prepared.params.max_tokens or 1,
            ignore_eos=call.request.ignore_eos,
            length_penalty=call.request.length_penalty,
        )
        beams = await beam_search(call.service, prepared, params)
        return [_of_beam(call, prepared, beam) for beam in beams]

    tasks = [asyncio.create_task(search(prepared)) for prepared in call.prepared]
    try:
        deltas = [delta for found in await asyncio.gather(*tasks) for delta in found]
    finally:  # after an error nothing keeps running for nobody
        for task in tasks:
            task.cancel()
    return deltas, sum(len(delta.token_ids) for delta in deltas)


def _of_beam(call: Call[Any], prepared: PreparedRequest, beam: Beam) -> Delta:
    """A hypothesis as a choice."""
    [detokenizer] = call.service.tokenizer.detokenizers(prepared.params, 1, prepared.markers)
    text = detokenizer.push(beam.token_ids, stop_token=beam.end is not None).text + detokenizer.finish().text
    logprobs = list(beam.logprobs) if prepared.params.logprobs is not None else None
    named = None if beam.end in call.service.end_token_ids else beam.end
    return Delta(list(beam.token_ids), text, logprobs, "length" if beam.end is None else "stop", named)


def nothing_after(delta: Delta) -> Delta:
    """What a request for the prompt alone gets of the one token that was generated: nothing."""
    return Delta([], "", None, "length" if delta.finish_reason else None)
