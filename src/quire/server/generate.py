"""What chat and text completion have in common: from body to streams, usage, and answers in two forms.

body ─ decode ─ model ─ prompts ─ prepare ─► streams ─► one JSON object, or server-sent events
                                              └─ closed in every case: the engine never works for nobody
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import Delta, RequestStream, merged
from quire.frontend.validate import GenerateRequest, decode
from quire.server.asgi import ClientGone, Receive, Scope, Send, answer, header, until_gone
from quire.server.errors import describe
from quire.server.limits import read_json_body
from quire.server.outcome import collected, found_by_beams, made
from quire.server.sse import DONE, EventStream, encode, event
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
        warnings: fields without effect.
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

    def usage(self, streams: Sequence[RequestStream], num_output: int) -> dict[str, Any]:
        """Token counts so far; a token that follows a prompt which alone was asked for does not count."""
        num_prompt = sum(len(prepared.prompt_ids) for prepared in self.prepared)
        num_output = 0 if self.request.only_prompt else num_output
        cached = sum(stream.num_cached_tokens for stream in streams[:: self.request.num_candidates])
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
        service = self._state.require_service()
        body = await read_json_body(scope, receive)
        request, warnings = decode(body, self.kind)
        del body
        self._state.check_model(request.model)
        if request.priority and not service.by_priority:
            warnings.append("priority has no effect here: the server runs without --scheduling-policy priority.")
        if request.request_id is not None and header(scope, b"x-request-id") is None:
            scope["quire.request_id"] = request.request_id
        call = Call(new_id(self.id_prefix), request, warnings, service, self._state)
        try:
            async with until_gone(receive):
                call.prepared = await self.prepare(call)
                headers = {"x-request-id": scope["quire.request_id"], **warnings_header(call.warnings)}
                with _started(call) as streams:
                    if request.stream:
                        await self._stream(call, streams, EventStream(send, headers))
                    else:
                        await self._answer(call, streams, send, headers)
        except ClientGone:
            log.debug("%s: the client is gone", call.id)

    # ---- for subclasses ------------------------------------------------------------------------------------------

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

    async def _answer(self, call: Call[R], streams: list[RequestStream], send: Send, headers: dict[str, str]) -> None:
        deltas, num_output = await (found_by_beams(call) if call.request.use_beam_search else collected(call))
        more = {"warnings": call.warnings} if call.warnings else {}

        def body() -> bytes:
            choices = [self.choice(call, i, delta) for i, delta in enumerate(deltas)]
            usage = call.usage(streams, num_output)
            return encode(call.frame(self.answer_object, choices, usage=usage, **self.extras(call), **more))

        await answer(send, await made(call, body), headers=headers)

    async def _stream(self, call: Call[R], streams: list[RequestStream], out: EventStream) -> None:
        writers = [self.writer(call, i) for i in range(len(streams))]
        num_output, scored = 0, call.request.wanted_prompt_logprobs() is not None
        try:
            async for index, delta in merged(streams):
                num_output += len(delta.token_ids)
                usage = call.usage(streams, num_output) if call.request.continuous_usage else None
                make = partial(writers[index].chunks, delta, usage)
                data = await made(call, make) if scored else make()
                if data:
                    await out.write(data)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not out.started:
                raise
            await out.end(b"data: " + describe(error, call.id).body + b"\n\n")
            return
        last = b""
        if call.request.include_usage:
            usage = call.usage(streams, num_output)
            last = event(call.frame(self.chunk_object, [], usage=usage))
        await out.end(last + DONE)


class ChoiceWriter(ABC):
    """Turns one choice's deltas into events; subclasses know the shape."""

    @abstractmethod
    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        """The events for a delta; empty where there is nothing to tell yet."""


@contextmanager
def _started(call: Call[Any]) -> Any:
    """The streams of all prompts, closed at the end whatever happens; a beam search makes its own as it goes."""
    try:
        for prepared in () if call.request.use_beam_search else call.prepared:
            call.streams += call.service.start(prepared)
        yield call.streams
    finally:
        for stream in call.streams:
            stream.close()


def warnings_header(warnings: list[str]) -> dict[str, str]:
    """The header that names fields without effect; none if there are none."""
    return {"x-quire-warnings": " ".join(warnings)[:MAX_HEADER_WARNINGS]} if warnings else {}


def with_usage(data: Any, usage: dict[str, Any] | None, wanted: bool) -> Any:
    """A chunk with its usage field, which is null in all but the last chunk where usage was asked for."""
    return {**data, "usage": usage} if wanted or usage is not None else data
