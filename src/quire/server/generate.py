"""What chat and text completion have in common: from body to streams, usage, and answers in two forms.

body ─ decode ─ model ─ prompts ─ prepare ─► streams ─► one JSON object, or server-sent events
                                              └─ closed in every case: the engine never works for nobody
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from quire.frontend.decode import decode, refuse_if
from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import Delta, RequestStream
from quire.frontend.validate import GenerateRequest
from quire.server.admission import VISIT, Visit
from quire.server.asgi import ClientGone, Receive, Scope, Send, answer, header, until_gone
from quire.server.channel import channel_of
from quire.server.deadline import Deadline
from quire.server.errors import describe
from quire.server.limits import MAX_BODY_BYTES, read_json_body
from quire.server.outcome import collected, found_by_beams, made
from quire.server.sse import DONE, ChunkWriter, EventStream, encode, event
from quire.server.state import ServerState, new_id

log = logging.getLogger("quire.server")
MAX_HEADER_WARNINGS = 1000
R = TypeVar("R", bound=GenerateRequest)


class Call(Generic[R]):
    """One request while it is answered.

    Attributes:
        id: of the response.
        request: checked.
        prepared: one per prompt.
        warnings: fields without effect; each begins with the field's name.
    """

    def __init__(self, id_: str, request: R, warnings: list[str], service: TextService, state: ServerState) -> None:
        self.id = id_
        self.request = request
        self.warnings = warnings
        self.service = service
        self.model = request.model or state.names[0]
        self.fingerprint = state.fingerprint
        self.created = int(time.time())
        self.arrival = time.monotonic()
        self.prepared: list[PreparedRequest] = []
        self.streams: list[RequestStream] = []

    def prompt(self, index: int) -> PreparedRequest:
        """The prompt of a choice."""
        return self.prepared[index // self.request.n]

    def first_stream(self, index: int) -> RequestStream:
        """The stream that scored the prompt of a choice."""
        return self.streams[index // self.request.n * self.request.num_candidates]

    def frame(self, object_: str, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        """A response object around some choices."""
        return {
            "id": self.id,
            "object": object_,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }

    def usage(self, num_output: int | None = None) -> dict[str, Any]:
        """Token counts so far; a token that follows a prompt which alone was asked for does not count.

        num_output: generated; default: what the streams have given out.
        """
        num_prompt = sum(len(prepared.prompt_ids) for prepared in self.prepared)
        if num_output is None:
            num_output = sum(stream.num_given for stream in self.streams)
        num_output = 0 if self.request.only_prompt else num_output
        cached = sum(stream.num_cached_tokens for stream in self.streams[:: self.request.num_candidates])
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class GenerateRoute(ABC, Generic[R]):
    """An ASGI endpoint. Subclasses say how prompts are made and how choices look.

    Args:
        state: shared by all routes.
    """

    kind: type[R]
    id_prefix: str
    answer_object: str
    chunk_object: str

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival = time.monotonic()
        service = self._state.require_service()
        visit: Visit = scope[VISIT]
        visit.look()
        body = await read_json_body(scope, receive, MAX_BODY_BYTES + self.more_body_bytes(service))
        request, warnings = decode(body, self.kind, strict=self._state.strict)
        self._state.check_model(request.model)
        deadline = Deadline.of(scope, request.timeout, arrival)
        visit.claim(request.num_completions, len(body) - request.num_picture_chars())
        del body
        if request.priority and not service.by_priority:
            warnings.append("priority has no effect here: the server runs without --scheduling-policy priority.")
        if request.request_id is not None and header(scope, b"x-request-id") is None:
            scope["quire.request_id"] = request.request_id
        call = Call(new_id(self.id_prefix), request, warnings, service, self._state)
        try:
            async with until_gone(scope, receive):
                async with deadline.around():
                    call.prepared = await self.prepare(call)
                _admit(call.prepared, visit, deadline.start_by(visit.start_by(arrival)))
                refuse_if(self._state.strict, call.warnings)
                headers = {"x-request-id": scope["quire.request_id"], **warnings_header(call.warnings)}
                with _started(call), deadline.over(call.streams):
                    if request.stream:
                        await self._stream(call, EventStream(send, headers, channel_of(scope)))
                    else:
                        async with deadline.around(request.use_beam_search):
                            await self._answer(call, send, headers)
        except ClientGone:
            log.debug("%s: the client is gone", call.id)

    # ---- for subclasses ------------------------------------------------------------------------------------------

    def more_body_bytes(self, service: TextService) -> int:
        """By which bodies may be larger than others are."""
        return 0

    @abstractmethod
    async def prepare(self, call: Call[R]) -> list[PreparedRequest]:
        """The prompts as tokens."""

    @abstractmethod
    def choice(self, call: Call[R], index: int, delta: Delta) -> dict[str, Any]:
        """A whole choice of a plain answer."""

    def extras(self, call: Call[R]) -> dict[str, Any]:
        """Further fields of the answer, or of the first chunk of a stream."""
        return {}

    @abstractmethod
    def writer(self, call: Call[R], index: int) -> ChoiceWriter:
        """The chunks of one choice of a stream."""

    # ---- both forms ----------------------------------------------------------------------------------------------

    async def _answer(self, call: Call[R], send: Send, headers: dict[str, str]) -> None:
        deltas, num_output = await (found_by_beams(call) if call.request.use_beam_search else collected(call))
        more = {"warnings": call.warnings} if call.warnings else {}

        def body() -> bytes:
            choices = [self.choice(call, i, delta) for i, delta in enumerate(deltas)]
            usage = call.usage(num_output)
            return encode(call.frame(self.answer_object, choices, usage=usage, **self.extras(call), **more))

        await answer(send, await made(call, body), headers=headers)

    async def _stream(self, call: Call[R], out: EventStream) -> None:
        choices = [_OpenChoice(call, self.writer(call, i), stream, out) for i, stream in enumerate(call.streams)]
        try:
            await _all(choice.run() for choice in choices)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not out.started:
                raise
            await out.end(b"data: " + describe(error, call.id).body + b"\n\n")
            return
        last = b""
        if call.request.include_usage:
            last = event(call.frame(self.chunk_object, [], usage=call.usage()))
        await out.end(last + DONE)


class _OpenChoice:
    """One choice while it is streamed: from its stream through its writer to the response that all choices share."""

    __slots__ = ("_call", "_channel", "_out", "_stream", "_writer")

    def __init__(self, call: Call[Any], writer: ChoiceWriter, stream: RequestStream, out: EventStream) -> None:
        self._call = call
        self._writer = writer
        self._stream = stream
        self._out = out
        self._channel = out.channel

    async def run(self) -> None:
        """Until the end. Deltas between the first and the last are written by `_write_now`, which wakes nobody."""
        call, out = self._call, self._out
        sink = None if call.request.continuous_usage or self._channel is None else self._write_now
        scored = call.request.wanted_prompt_logprobs() is not None
        while (delta := await self._stream.next_delta(sink)) is not None:
            usage = call.usage() if call.request.continuous_usage else None
            make = partial(self._writer.chunks, delta, usage)
            data = await made(call, make) if scored else make()
            if data:
                await out.write(data if out.started else _with_warnings(data, call.warnings))
            if delta.finish_reason is not None:
                return

    def _write_now(self, delta: Delta) -> bool:
        """Write a delta as it arrives. A reader that is behind, or a response not begun, has it wait for `run`."""
        channel = self._channel
        if channel is None or not channel.ready:
            return False
        data = self._writer.chunks(delta, None)
        if data:
            channel.write_now(data)
        return True


def _with_warnings(data: bytes, warnings: list[str]) -> bytes:
    """Events of which the first one names the fields without effect, beside what it carries anyway."""
    if not warnings:
        return data
    return data.replace(b"data: {", b'data: {"warnings":%b,' % encode(warnings), 1)


class ChoiceWriter(ABC):
    """Turns one choice's deltas into events; subclasses know the shape.

    Nearly all chunks tell nothing but text: those are made here, of bytes that stand ready.

    Args:
        text: writes such chunks.
        only_text: whether the request wants nothing else to be told between the first chunk and the last.
    """

    __slots__ = ("_begun", "_only_text", "_text")

    def __init__(self, text: ChunkWriter, *, only_text: bool) -> None:
        self._text = text
        self._only_text = only_text
        self._begun = False

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        """The events for a delta; empty where there is nothing to tell yet."""
        if not self._begun:
            self._begun = True
            return self.opening(usage) + self.chunks(delta, usage)
        if self._only_text and usage is None and delta.finish_reason is None:
            return self._text.chunk(delta.text) if delta.text else b""
        return self.whole_chunks(delta, usage)

    @abstractmethod
    def opening(self, usage: dict[str, Any] | None) -> bytes:
        """The events before all others, if there are any."""

    @abstractmethod
    def whole_chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        """The events for a delta about which there may be more to tell than its text."""


def _admit(prepared: Sequence[PreparedRequest], visit: Visit, start_by: float) -> None:
    """Requests whose tokens are counted now become their caller's, and have a time to begin.

    Raises:
        OverloadedError: their tokens are more than the line has room for.
    """
    visit.count(sum(len(one.prompt_ids) for one in prepared))
    for one in prepared:
        one.cache_salt = visit.salt + one.cache_salt
        one.tenant, one.start_by, one.follower = visit.tenant, start_by, visit


@contextmanager
def _started(call: Call[Any]) -> Iterator[None]:
    """Run all prompts as `call.streams`, closed at the end whatever happens. A beam search makes its own as it goes."""
    try:
        for prepared in () if call.request.use_beam_search else call.prepared:
            call.streams += call.service.start(prepared)
        yield
    finally:
        for stream in call.streams:
            stream.close()


async def _all(choices: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side; the first error ends all of them."""
    first, *others = choices
    if not others:
        await first
        return
    tasks = [asyncio.ensure_future(choice) for choice in (first, *others)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def warnings_header(warnings: list[str]) -> dict[str, str]:
    """The header that names fields without effect; none if there are none."""
    return {"x-quire-warnings": " ".join(warnings)[:MAX_HEADER_WARNINGS]} if warnings else {}


def with_usage(data: Any, usage: dict[str, Any] | None, wanted: bool) -> Any:
    """A chunk with its usage field, which is null in all but the last chunk where usage was asked for."""
    return {**data, "usage": usage} if wanted or usage is not None else data
