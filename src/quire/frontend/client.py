"""Client: the frontend's end of the wire. Owns the streams of all requests in flight and, mostly, the engine process.

The server and `LLM` both use it, from one asyncio loop. Sending never waits; what arrives is read when the loop sees
it, all of it at once, so that a backlog becomes fewer and larger pieces instead of more work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from quire.errors import ConfigError, EngineDeadError, StartupError, UnavailableError
from quire.frontend.backlog import joined
from quire.frontend.streams import RequestStream
from quire.messages import (
    AbortRequests,
    AddRequest,
    Constraint,
    EngineStats,
    FromEngine,
    Outputs,
    Progress,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StartFailed,
    ToEngine,
    pack_ids,
)
from quire.params import SamplingParams

log = logging.getLogger("quire.frontend")
SHUTDOWN_SECONDS = 5.0
MAX_AT_ONCE = 64
"""Messages taken in before the loop may turn to something else."""


class Client:
    """Talks to one engine process.

    Args:
        folder: private folder of the sockets.
        process: the engine, if it is this client that ends it and learns of its end; others are told by `engine_ended`.
        on_progress: called while weights load.
        on_close: cleans up the folder.
        index: which of the engine's clients this is.
        num_clients: how many of them share the engine.

    Attributes:
        folder: where the sockets are.
        ready: the engine's facts, None until it is up.
        stats: the newest gauges and counters.
        dead: whether the engine has ended.
        on_stats: called with the gauges and counters of every message.
    """

    def __init__(
        self,
        folder: Path,
        process: subprocess.Popen[bytes] | None,
        on_progress: Callable[[Progress], None] | None = None,
        on_close: Callable[[], None] = lambda: None,
        *,
        index: int = 0,
        num_clients: int = 1,
    ) -> None:
        self.folder = folder
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self.dead = False
        self.on_stats: Callable[[EngineStats], None] | None = None
        self._process = process
        self._on_progress = on_progress
        self._on_close = on_close
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(index, num_clients)
        self._loop = asyncio.get_running_loop()
        self._came_up: asyncio.Future[Ready] = self._loop.create_future()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._outbox = self._context.socket(zmq.PUSH)
        for socket, name in ((self._inbox, "out"), (self._outbox, "in")):
            socket.set_hwm(0)
            socket.bind(f"ipc://{folder / name}{index}")
        self._inbox_fd: int = self._inbox.fileno()
        self._loop.add_reader(self._inbox_fd, self._take_in)
        if process is not None:
            threading.Thread(target=self._watch, args=(process,), name="quire-watch", daemon=True).start()

    # ---- the engine's life ---------------------------------------------------------------------------------------

    async def wait_ready(self) -> Ready:
        """Wait until the engine takes requests.

        Raises:
            ConfigError: a setting cannot work; the message says which would.
            StartupError: anything else that kept it from starting.
        """
        return await asyncio.shield(self._came_up)

    async def wait_ended(self) -> int:
        """Wait until the engine process is gone; its exit code."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """End the engine; requests in flight are dropped. Returns when the process, and with it its memory, is gone."""
        if self._process is not None and not self._ended.done():
            self._send(Shutdown())
            try:
                await asyncio.wait_for(self.wait_ended(), SHUTDOWN_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self.wait_ended()
        self._loop.remove_reader(self._inbox_fd)
        self._outbox.close(linger=0)
        self._inbox.close(linger=0)
        self._context.term()
        self._on_close()

    def kill(self) -> None:
        """End the engine without a word, where there is nobody left to wait for it."""
        if self._process is not None:
            self._process.kill()
        self._on_close()

    def engine_ended(self, code: int) -> None:
        """The engine process is gone: every request in flight fails."""
        self._take_in()  # its last words may still be on the wire
        self.dead = True
        self._fail_start(StartupError(f"The engine process ended with code {code} before it was ready."))
        for stream in list(self._streams.values()):
            stream.fail(EngineDeadError("The engine ended while it worked on this request."))
        self._streams.clear()
        if not self._ended.done():
            self._ended.set_result(code)

    # ---- requests ------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        stream: RequestStream,
        *,
        stop_token_ids: list[int],
        priority: int = 0,
        cache_salt: str = "",
        first: RequestStream | None = None,
        constraint: Constraint | None = None,
        tenant: str = "",
        start_by: float = 0.0,
    ) -> None:
        """Send one request; its outputs go to `stream`.

        first: of several requests with the same prompt, the stream of the one that was sent first, or is now.

        Raises:
            UnavailableError: the engine is not up yet, or has ended.
        """
        self._check_alive()
        id_ = next(self._ids)
        stream.attach(id_, self._abort)
        self._streams[id_] = stream
        group = -1 if first is None else first.id
        ids = pack_ids(prompt_ids)
        self._send(
            AddRequest(id_, ids, params, stop_token_ids, priority, cache_salt, group, constraint, tenant, start_by)
        )

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        self._check_alive()
        self._send(ResetPrefixCache())

    @property
    def num_in_flight(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._streams)

    def _abort(self, id_: int) -> None:
        if self._streams.pop(id_, None) is not None and not self.dead:
            self._send(AbortRequests([id_]))

    def _check_alive(self) -> None:
        if self.dead:
            raise EngineDeadError("The engine has ended; the server must be restarted.")
        if self.ready is None:
            raise UnavailableError("The model is still loading.")

    # ---- the wire ------------------------------------------------------------------------------------------------

    def _send(self, message: ToEngine) -> None:
        """Never waits: the queue has no bound, and without an engine at the other end there is nobody to tell."""
        with contextlib.suppress(zmq.Again):
            self._outbox.send(self._encoder.encode(message), zmq.NOBLOCK)

    def _take_in(self) -> None:
        """Read until nothing is left, which is also what arms the socket's descriptor again."""
        outputs: list[Outputs] = []
        for _ in range(MAX_AT_ONCE):
            try:
                message = self._decoder.decode(self._inbox.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            except zmq.ZMQError:  # closed: a turn of the loop that was already planned
                return
            except msgspec.MsgspecError as error:
                log.error("dropped a message that is none of the engine's: %s", error)
                continue
            if isinstance(message, Outputs):
                outputs.append(message)
            else:
                self._note(message)
        else:
            self._loop.call_soon(self._take_in)
        if outputs:
            self._deliver(outputs)

    def _note(self, message: Ready | Progress | StartFailed) -> None:
        if isinstance(message, Ready):
            self.ready = message
            self._came_up.set_result(message)
        elif isinstance(message, Progress):
            if self._on_progress:
                self._on_progress(message)
        else:
            error = ConfigError if message.kind == "config" else StartupError
            self._fail_start(error(message.message))

    def _deliver(self, messages: list[Outputs]) -> None:
        self.stats = messages[-1].stats
        if self.on_stats:
            self.on_stats(self.stats)
        outputs = messages[0].outputs if len(messages) == 1 else joined(messages)
        streams, now = self._streams, time.monotonic()
        for output in outputs:
            stream = streams.get(output.id)
            if stream is None:
                continue  # it was aborted here; the engine's last words about it do not matter
            stream.push(output, now)
            if output.finish_reason is not None:
                streams.pop(output.id, None)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """In a thread: wait for the process, tell the loop."""
        code = process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.call_later, 0.05, self.engine_ended, code)

    def _fail_start(self, error: ConfigError | StartupError) -> None:
        if not self._came_up.done():
            self._came_up.set_exception(error)
            self._came_up.exception()  # read once, so that nobody waiting is no warning
