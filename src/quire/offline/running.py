"""What `LLM` runs on its loop: whole generations, outputs while they grow, beam searches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from quire.frontend.beam import beam_search
from quire.frontend.candidates import Chosen
from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import Delta, RequestStream, merged
from quire.offline.progress import ProgressBar
from quire.offline.results import Numbered, Results
from quire.outputs import BeamSearchOutput, CompletionOutput, RequestOutput
from quire.params import BeamSearchParams, RequestOutputKind, SamplingParams


async def generate_all(
    service: TextService, results: Results, numbered: Sequence[Numbered], bar: ProgressBar | None
) -> list[RequestOutput]:
    """All prompts together; the outputs in their order."""

    async def collect(one: Numbered, own: Sequence[RequestStream]) -> RequestOutput:
        deltas = [await stream.collect() for stream in own]
        if bar:
            bar.add(len(one.request.prompt_ids), sum(len(delta.token_ids) for delta in deltas))
        return results.whole(one.id, one.request, own, deltas)

    streams: list[list[RequestStream]] = []
    try:
        for _, request in numbered:
            streams.append(service.start(request))
        return await asyncio.gather(*(collect(one, own) for one, own in zip(numbered, streams, strict=True)))
    finally:  # after Ctrl-C or an error nothing keeps running for nobody
        for own in streams:
            for stream in own:
                stream.close()
        if bar:
            bar.close()


async def stream_outputs(
    service: TextService, results: Results, numbered: Sequence[Numbered]
) -> AsyncIterator[RequestOutput]:
    """Outputs of all prompts as they come, in the form that each asks for."""
    owners: list[tuple[Numbered, int, list[RequestStream]]] = []
    streams: list[RequestStream] = []
    try:
        for one in numbered:
            own = service.start(one.request)
            owners += [(one, index, own) for index in range(len(own))]
            streams += own
        so_far = [Delta([], "") for _ in streams]
        async for place, delta in merged(streams):
            (id_, request), index, own = owners[place]
            kind = request.params.output_kind
            so_far[place].extend(delta)
            first = place - index
            deltas = so_far[first : first + len(own)]
            finished = all(delta.finish_reason is not None for delta in deltas)
            if kind == RequestOutputKind.FINAL_ONLY:
                if finished:
                    yield results.whole(id_, request, own, deltas)
                continue
            shown = delta if kind == RequestOutputKind.DELTA else so_far[place]
            grown = [_grown(results, index, shown, so_far[place], request.params)]
            yield results.request(id_, request, own, grown, finished=finished)
    finally:
        for stream in streams:
            stream.close()


def _grown(results: Results, index: int, shown: Delta, whole: Delta, params: SamplingParams) -> CompletionOutput:
    """A completion with what is shown of it; its log-probability is always that of the whole."""
    total = None if whole.logprobs is None else sum(entry.logprobs[0] for entry in whole.logprobs)
    copy = Delta([*shown.token_ids], shown.text, shown.logprobs, shown.finish_reason, shown.stop_reason)
    return results.completion(index, Chosen(copy, total), params)


async def search_beams(
    service: TextService,
    results: Results,
    numbered: Sequence[Numbered],
    params: BeamSearchParams,
    concurrency_limit: int | None,
    bar: ProgressBar | None,
) -> list[BeamSearchOutput]:
    """A beam search for each prompt, at most `concurrency_limit` at a time."""
    gate = asyncio.Semaphore(concurrency_limit or len(numbered) or 1)

    async def search(request: PreparedRequest) -> BeamSearchOutput:
        async with gate:
            beams = await beam_search(service, request, params)
        if bar:
            bar.add(len(request.prompt_ids), len(beams[0].token_ids))
        keep_end = params.include_stop_str_in_output
        return BeamSearchOutput([results.sequence(request.prompt_ids, beam, keep_end=keep_end) for beam in beams])

    tasks = [asyncio.create_task(search(request)) for _, request in numbered]
    try:
        return await asyncio.gather(*tasks)
    finally:  # after Ctrl-C or an error nothing keeps running for nobody
        for task in tasks:
            task.cancel()
        if bar:
            bar.close()
