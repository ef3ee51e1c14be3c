"""RequestStream: one completion on its way from the engine to whoever asked. Owns its text and its end.

The client pushes what each step brought. A consumer has three ways to take it:

    async for delta in stream           woken for each delta
    await stream.next_delta(sink)       while it waits, deltas are handed to `sink` on the spot, and nobody is woken
    await stream.collect()              woken once, at the end
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from types import TracebackType
from typing import Protocol

import msgspec

from quire.errors import DeadlineError, QuireError, RequestError, RequestFailedError
from quire.frontend.detokenizer import AnyDetokenizer, NoDetokenizer
from quire.frontend.repetition import DETECTED, REPETITION, RepetitionWatch
from quire.messages import TokenLogprobs, TokenOutput

_LATE = "The request was not begun within the time that it may wait: --max-queue-time, or less by its own timeout."


class Delta(msgspec.Struct, gc=False):
    """What is new since the last one. The last has a `finish_reason`.

    Attributes:
        stop_reason: the stop string or stop token id that ended the output; None for the model's own end token.
    """

    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def extend(self, later: Delta) -> None:
        """Append what came later."""
        self.token_ids += later.token_ids
        self.text += later.text
        if later.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *later.logprobs]
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


class TokenObserver(Protocol):
    """Told about tokens as they arrive; metrics are one."""

    def on_tokens(self, now: float, count: int, queued_s: float) -> None:
        """`count` new tokens at `now` (monotonic seconds)."""

    def on_finish(self, now: float, reason: str) -> None:
        """The one end: stop, length, abort or error."""


Sink = Callable[[Delta], bool]
"""Takes a delta at once, or says False: then it is kept for the consumer, who is woken."""


class RequestStream:
    """One completion.

    Args:
        detokenizer: fresh, or None for token ids only.
        end_token_ids: the model's own end tokens; they are no stop reason.
        observer: told about tokens and the end.
        interval: tokens in a delta, besides the first and the last ones; several at once may make it more.
        watch: fresh, where an answer that repeats itself is to end.

    Attributes:
        num_given: tokens that the consumer has.
        num_cached_tokens: prompt tokens that the prefix cache gave; known with the first output.
        prompt_logprobs: of the prompt's tokens from the second on, if asked for; complete with the first token.
        arrival, first_token, last_token: monotonic seconds; 0 while there is none.
        queued_s: seconds between arrival in the engine and the first step.
    """

    __slots__ = (
        "_abort",
        "_collecting",
        "_detokenizer",
        "_end_token_ids",
        "_ended",
        "_error",
        "_held",
        "_id",
        "_interval",
        "_new",
        "_observer",
        "_sink",
        "_waiter",
        "_watch",
        "arrival",
        "first_token",
        "last_token",
        "num_cached_tokens",
        "num_given",
        "prompt_logprobs",
        "queued_s",
    )

    def __init__(
        self,
        detokenizer: AnyDetokenizer | None = None,
        end_token_ids: Collection[int] = (),
        observer: TokenObserver | None = None,
        interval: int = 1,
        watch: RepetitionWatch | None = None,
    ) -> None:
        self.num_given = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.arrival = time.monotonic()
        self.first_token = self.last_token = self.queued_s = 0.0
        self._detokenizer = detokenizer or NoDetokenizer()
        self._end_token_ids = end_token_ids
        self._observer = observer
        self._interval = interval
        self._watch = watch
        self._held: Delta | None = None  # fewer tokens than make a delta; None while the first is still to come
        self._id = -1
        self._abort: Callable[[int], None] | None = None
        self._new: Delta | None = None
        self._error: Exception | None = None
        self._ended = False
        self._collecting = False
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- the client's side ---------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Under which the request was sent."""
        return self._id

    def attach(self, id_: int, abort: Callable[[int], None]) -> None:
        """The request was sent under this id."""
        self._id, self._abort = id_, abort

    def push(self, output: TokenOutput, now: float | None = None) -> None:
        """Take in what a step brought, at `now` (monotonic seconds)."""
        if self._ended:
            return
        if output.late:
            self.fail(DeadlineError(_LATE, "queue_timeout", 1))
            return
        if output.error is not None or output.finish_reason == "error":
            message = output.error or "The engine failed on this request."
            self.fail(RequestError(message, output.param) if output.param else RequestFailedError(message))
            return
        if output.prompt_logprobs is not None:
            self.prompt_logprobs += output.prompt_logprobs
            if not output.token_ids and output.finish_reason is None:
                return
        delta = self._to_delta(output)
        now = time.monotonic() if now is None else now
        if delta.token_ids:
            self.last_token = now
            if not self.first_token:
                self.first_token, self.queued_s = now, output.queued_s
        if output.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = output.num_cached_tokens
        if self._observer and delta.token_ids:
            self._observer.on_tokens(now, len(delta.token_ids), output.queued_s)
        if self._interval > 1:
            gathered = self._gathered(delta)
            if gathered is None:
                return
            delta = gathered
        if delta.finish_reason is None and self._sink is not None and self._taken(delta):
            return
        self._keep(delta)
        if delta.finish_reason:
            if output.finish_reason is None and self._abort:  # ended by its text: the engine does not know yet
                self._abort(self._id)
            self._end(delta.finish_reason, now)
        elif not self._collecting:
            self._wake()

    def _keep(self, delta: Delta) -> None:
        """Until the consumer comes for it."""
        if self._new is None:
            self._new = delta
        else:
            self._new.extend(delta)

    def _gathered(self, delta: Delta) -> Delta | None:
        """This delta with what was held before it; None while that is too little. The first goes out at once."""
        held = self._held
        if held is None:
            self._held = Delta([], "")
            return delta
        held.extend(delta)
        if held.finish_reason is None and len(held.token_ids) < self._interval:
            return None
        self._held = Delta([], "")
        return held

    def _taken(self, delta: Delta) -> bool:
        """Whether the sink has it. A sink's own error is the consumer's: he gets it raised, the others go on."""
        try:
            if self._sink is None or self._new is not None or not self._sink(delta):
                return False
        except Exception as error:  # noqa: BLE001 - raised again in next_delta
            self._sink, self._error = None, error
            return False
        self.num_given += len(delta.token_ids)
        return True

    def fail(self, error: QuireError) -> None:
        """End with an error; whoever consumes the stream gets it raised."""
        if not self._ended:
            if self._held is not None and self._held.token_ids:
                self._keep(self._held)
            self._error = error
            self._end("error", time.monotonic())

    def cut(self, error: QuireError) -> None:
        """The same, for an error that the engine does not know of: it is told to stop."""
        if not self._ended:
            if self._abort:
                self._abort(self._id)
            self.fail(error)

    # ---- the consumer's side -------------------------------------------------------------------------------------

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Delta:
        """All that is new; waits if nothing is."""
        delta = await self.next_delta()
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def next_delta(self, sink: Sink | None = None) -> Delta | None:
        """All that is new and that `sink` has not taken, the end in any case; None after it.

        Raises:
            QuireError: the request failed.
            Exception: what the sink raised.
        """
        while self._new is None:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._sink = sink
            try:
                await self._wait()
            finally:
                self._sink = None
        delta, self._new = self._new, None
        self.num_given += len(delta.token_ids)
        return delta

    async def collect(self) -> Delta:
        """Wait for the end; everything as one delta."""
        self._collecting = True
        while not self._ended:
            await self._wait()
        if self._error is not None:
            raise self._error
        delta, self._new = self._new, None
        delta = delta or Delta([], "", finish_reason="abort")
        self.num_given += len(delta.token_ids)
        return delta

    def close(self) -> None:
        """Nobody reads any more: abort the request if it has not ended."""
        if not self._ended:
            if self._abort:
                self._abort(self._id)
            self._new = Delta([], "", finish_reason="abort") if self._new is None else self._new
            self._new.finish_reason = "abort"
            self._end("abort", time.monotonic())

    async def aclose(self) -> None:
        """The same, as async generators have it."""
        self.close()

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _to_delta(self, output: TokenOutput) -> Delta:
        """Text for the tokens; a stop string may end the output before the engine does."""
        token_ids: list[int] = output.token_ids
        reason: str | None = output.finish_reason
        if self._watch is not None:
            count = self._watch.feed(token_ids)
            if count is not None and (count < len(token_ids) or reason is None):
                token_ids, reason = token_ids[:count], REPETITION
        pushed = self._detokenizer.push(token_ids, stop_token=reason == "stop")
        text, stop = pushed.text, pushed.stop
        if reason is None and stop is None:  # nearly always
            return Delta(token_ids, text, output.logprobs)
        if stop is None:
            rest = self._detokenizer.finish()
            text, stop = text + rest.text, rest.stop
        if stop is not None:
            logprobs = output.logprobs[: pushed.num_tokens] if output.logprobs else None
            return Delta(token_ids[: pushed.num_tokens], text, logprobs, "stop", stop)
        if reason == REPETITION:
            logprobs = output.logprobs[: len(token_ids)] if output.logprobs else None
            return Delta(list(token_ids), text, logprobs, reason, DETECTED)
        last = token_ids[-1] if token_ids else None
        stop_token = last if reason == "stop" and last not in self._end_token_ids else None
        return Delta(list(token_ids), text, output.logprobs, reason, stop_token)

    def _end(self, reason: str, now: float) -> None:
        self._ended = True
        if self._observer:
            self._observer.on_finish(now, reason)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


async def merged(streams: Sequence[RequestStream]) -> AsyncIterator[tuple[int, Delta]]:
    """What is new in any stream, as it comes."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue()

    async def pump(index: int) -> None:
        try:
            async for delta in streams[index]:
                queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(i)) for i in range(len(streams))]
    try:
        open_streams = len(streams)
        while open_streams:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
