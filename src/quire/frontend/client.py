"""Client: the frontend's end of the wire. Owns the streams of all requests in flight and, mostly, the engine process.

The server and `LLM` both use it, from one asyncio loop. Sending never waits; what arrives is read when the loop sees
it, all of it at once, so that a backlog becomes fewer and larger pieces instead of more work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from quire.errors import (
    ConfigError,
    EngineDeadError,
    QuireError,
    RequestFailedError,
    StartupError,
    UnavailableError,
)
from quire.frontend.backlog import joined
from quire.frontend.streams import RequestStream
from quire.frontend.watchdog import watch
from quire.messages import (
    AbortRequests,
    AddRequest,
    Constraint,
    EngineFailed,
    EngineStats,
    FromEngine,
    Outputs,
    Picture,
    Ping,
    Progress,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StartFailed,
    ToEngine,
    TokenOutput,
    pack_ids,
)
from quire.observability.heartbeat import FILE, Heartbeat
from quire.params import SamplingParams

log = logging.getLogger("quire.frontend")
SHUTDOWN_SECONDS = 5.0
DUMP_SECONDS = 0.5
"""What a hung engine gets to write down where its threads are."""
MAX_AT_ONCE = 64
"""Messages taken in before the loop may turn to something else."""


class Client:
    """Talks to one engine process.

    Args:
        folder: private folder of the sockets.
        spawn: starts an engine process, which this client ends, and of whose end it learns; None where another process
            has it, and tells by `engine_ended`.
        on_progress: called while weights load.
        on_close: cleans up the folder.
        index: which of the engine's clients this is.
        num_clients: how many of them share the engine.
        step_timeout: seconds without a turn of the engine's loop after which it counts as hung.

    Attributes:
        folder: where the sockets are.
        ready: the engine's facts, None until it is up for the first time.
        stats: the newest gauges and counters.
        dead: whether the engine has ended, and no new one is ready.
        reason: why it ended, in a sentence that clients may read; empty while it lives.
        detail: the error that it ended with, for the log; may be empty.
        on_stats: called with the gauges and counters of every message.
    """

    def __init__(
        self,
        folder: Path,
        spawn: Callable[[], subprocess.Popen[bytes]] | None,
        on_progress: Callable[[Progress], None] | None = None,
        on_close: Callable[[], None] = lambda: None,
        *,
        index: int = 0,
        num_clients: int = 1,
        step_timeout: float = 120.0,
    ) -> None:
        self.folder = folder
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self.dead = False
        self.reason = ""
        self.on_stats: Callable[[EngineStats], None] | None = None
        self._spawn = spawn
        self._step_timeout = step_timeout
        self._on_progress = on_progress
        self._on_close = on_close
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(index, num_clients)
        self._loop = asyncio.get_running_loop()
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
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._begin()

    # ---- the engine's life ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A process, and what is to be known of it."""
        self._came_up: asyncio.Future[Ready] = self._loop.create_future()
        self._died: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._last_words = self.detail = ""
        if self._spawn is None:
            return
        Heartbeat.create(self.folder / FILE)
        self._process = self._spawn()
        threading.Thread(target=self._wait_for, args=(self._process,), name="quire-watch", daemon=True).start()
        self._watching = self._loop.create_task(self._watch())

    def restart(self) -> None:
        """Start a new engine after one that has ended; `wait_ready` tells when and how it came up."""
        if self._process is None or not self._ended.done():
            raise RuntimeError("an engine is started again only by who has it, and when it is gone")
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._begin()

    async def wait_ready(self) -> Ready:
        """Wait until the engine takes requests.

        Raises:
            ConfigError: a setting cannot work; the message says which would.
            StartupError: anything else that kept it from starting.
        """
        return await asyncio.shield(self._came_up)

    async def wait_dead(self) -> None:
        """Wait until the engine is of no more use; its process may be there for a moment yet."""
        await asyncio.shield(self._died)

    async def wait_ended(self) -> int:
        """Wait until the engine process is gone; its exit code."""
        return await asyncio.shield(self._ended)

    async def close(self, seconds: float = SHUTDOWN_SECONDS) -> None:
        """End the engine; requests in flight are dropped. Returns when the process, and with it its memory, is gone.

        seconds: after which it is killed.
        """
        if self._watching is not None:
            self._watching.cancel()
        if self._process is not None and not self._ended.done():
            self._send(Shutdown())
            try:
                await asyncio.wait_for(self.wait_ended(), seconds)
            except TimeoutError:
                self._process.kill()
                await asyncio.wait({asyncio.ensure_future(self.wait_ended())}, timeout=SHUTDOWN_SECONDS)
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

    def engine_ended(self, reason: str) -> None:
        """The engine is of no more use: every request in flight fails, and those that come are refused."""
        self._take_in()  # its last words may still be on the wire
        self.dead, self.reason = True, reason
        self.stats = EngineStats()
        if self.on_stats:
            self.on_stats(self.stats)
        self._fail_start(StartupError(f"{reason} before it was ready."))
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(EngineDeadError(f"{reason} while it worked on this request."))
        if not self._died.done():
            self._died.set_result(None)

    async def _watch(self) -> None:
        """Until the engine hangs: then it is asked where, and killed."""
        with contextlib.suppress(QuireError):
            await self.wait_ready()
        if self.ready is None or self.dead:
            return
        await watch(Heartbeat(self.folder / FILE), self._step_timeout, lambda: self._send(Ping()))
        process = self._process
        if process is None or self._ended.done():
            return
        limit = f"{self._step_timeout:g} s (--step-timeout)"
        log.error("The engine has not moved for %s: it is killed. Where its threads are:", limit)
        for number in (signal.SIGUSR1, signal.SIGCONT):  # one that is stopped runs on only to write that down
            process.send_signal(number)
        self.engine_ended(f"The engine hung for more than {limit}")
        await asyncio.sleep(DUMP_SECONDS)
        process.kill()

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """In a thread: wait for the process, tell the loop."""
        code = process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.call_later, 0.05, self._gone, code)

    def _gone(self, code: int) -> None:
        """The process has ended."""
        if self._inbox.closed:
            return
        if self._watching is not None:
            self._watching.cancel()
        if not self._died.done():
            self._take_in()
            self.engine_ended(_how_it_ended(code, self._last_words))
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
        pictures: Sequence[Picture] = (),
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
            AddRequest(
                *(id_, ids, params, stop_token_ids, priority, cache_salt, group, constraint, tenant, start_by),
                pictures=list(pictures),
            )
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
            raise EngineDeadError(f"{self.reason}; it takes no requests.")
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
                if not self.dead:  # it goes on for a moment after it was given up
                    outputs.append(message)
            else:
                self._note(message)
        else:
            self._loop.call_soon(self._take_in)
        if outputs:
            self._deliver(outputs)

    def _note(self, message: Ready | Progress | StartFailed | EngineFailed) -> None:
        if isinstance(message, Ready):
            self.ready, self.dead, self.reason = message, False, ""
            if self._spawn is None and self._died.done():  # a new engine, where others start it
                self._begin()
            if not self._came_up.done():
                self._came_up.set_result(message)
        elif isinstance(message, EngineFailed):
            self._last_words, self.detail = message.message, message.detail
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
            try:
                stream.push(output, now)
            except Exception as error:  # noqa: BLE001 - it ends this request, and nobody else
                self._drop(stream, output, error)
            if output.finish_reason is not None:
                streams.pop(output.id, None)

    def _drop(self, stream: RequestStream, output: TokenOutput, error: Exception) -> None:
        """What the engine said cannot be made text of."""
        log.error("an output could not be taken in", exc_info=error)
        if output.finish_reason is None:
            self._abort(output.id)
        stream.fail(RequestFailedError(f"{type(error).__name__} when its output came"))

    def _fail_start(self, error: ConfigError | StartupError) -> None:
        if not self._came_up.done():
            self._came_up.set_exception(error)
            self._came_up.exception()  # read once, so that nobody waiting is no warning


def _how_it_ended(code: int, last_words: str) -> str:
    """The end of an engine process in words."""
    if last_words:
        return f"The engine has ended unexpectedly: {last_words}"
    if code >= 0:
        return f"The engine has ended unexpectedly with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", which is what the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"The engine has ended unexpectedly: killed by {name}{hint}"
