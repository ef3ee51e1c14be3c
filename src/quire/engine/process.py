"""The engine's end of the wire: messages in, one step, messages out. Sleeps when there is nothing to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from quire.engine.core import EngineCore
from quire.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    FromEngine,
    Outputs,
    Ping,
    ResetPrefixCache,
    ToEngine,
    TokenOutput,
)
from quire.observability.heartbeat import Heartbeat

log = logging.getLogger("quire.engine")

QUIET_S = 0.1
"""After so long without work the device may prepare for later."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A request of which no more than its id could be read."""

    id: int


class Wire:
    """The sockets in a private folder: one for what comes in, one to each frontend for what goes out.

    Messages are msgpack, decoded into the typed records of `messages.py`; anything else is dropped with a log line.

    Args:
        folder: where the frontends listen.
        num_clients: how many there are; a request's id modulo this number says whose it is.
    """

    def __init__(self, folder: Path, num_clients: int = 1) -> None:
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._outboxes = [self._context.socket(zmq.PUSH) for _ in range(num_clients)]
        for socket in (self._inbox, *self._outboxes):
            socket.set_hwm(0)
        for index, outbox in enumerate(self._outboxes):
            self._inbox.connect(f"ipc://{folder / f'in{index}'}")
            outbox.connect(f"ipc://{folder / f'out{index}'}")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def send(self, message: FromEngine) -> list[int]:
        """Send without waiting: outputs to whom they belong, everything else to all.

        Returns the ids of requests whose outputs could not be encoded; their clients are told that they failed.
        """
        try:
            self._send(message)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            if not isinstance(message, Outputs):
                raise
            return self._send_what_can_be(message, error)
        return []

    def _send(self, message: FromEngine) -> None:
        if len(self._outboxes) > 1 and isinstance(message, Outputs):
            self._send_apart(message)
            return
        data = self._encoder.encode(message)
        for outbox in self._outboxes:
            outbox.send(data)

    def _send_what_can_be(self, message: Outputs, error: Exception) -> list[int]:
        """One bad output takes no other with it."""
        bad: list[int] = []
        for output in message.outputs:
            try:
                self._send(Outputs([output], message.stats))
            except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
                bad.append(output.id)
                failed = TokenOutput(output.id, [], "error", error="its output could not be encoded")
                self._send(Outputs([failed], message.stats))
        log.error("outputs of requests %s could not be encoded", bad, exc_info=error)
        return bad

    def _send_apart(self, message: Outputs) -> None:
        """Each frontend its own outputs; without any only the first one is woken, for the sake of the gauges."""
        parts: list[list[TokenOutput]] = [[] for _ in self._outboxes]
        for output in message.outputs:
            parts[output.id % len(parts)].append(output)
        encoded = [
            (outbox, self._encoder.encode(Outputs(part, message.stats)))
            for index, (outbox, part) in enumerate(zip(self._outboxes, parts, strict=True))
            if part or index == 0
        ]
        for outbox, data in encoded:
            outbox.send(data)

    def receive(self, *, wait_s: float, others: Sequence[int] = ()) -> list[ToEngine | Unreadable]:
        """All messages that are there; if there is none, wait that long for the first, or until one of the other
        descriptors is readable."""
        messages: list[ToEngine | Unreadable] = []
        if wait_s:
            poller = zmq.Poller()
            for socket in (self._inbox, *others):
                poller.register(socket, zmq.POLLIN)
            poller.poll(None if math.isinf(wait_s) else math.ceil(wait_s * 1000))
        while True:
            try:
                data: Any = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._decoder.decode(data))
            except msgspec.MsgspecError as error:
                if (id_ := _id_of(data)) is not None:
                    messages.append(Unreadable(id_))
                log.error("a message of %d bytes could not be read: %s", len(data), error)

    def close(self) -> None:
        """Let what was sent go out, then close."""
        self._context.destroy(linger=1000)


def _id_of(data: bytes) -> int | None:
    """Whose request it is that cannot be read; None if it is not even that."""
    try:
        fields = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError:
        return None
    is_request = isinstance(fields, list) and len(fields) > 1 and fields[0] == "add" and type(fields[1]) is int
    return fields[1] if is_request else None


class EngineProcess:
    """Serves one core until told to shut down.

    Args:
        core: the loop.
        wire: to the frontends.
        beat: counted up at each turn.
    """

    def __init__(self, core: EngineCore, wire: Wire, beat: Heartbeat | None = None) -> None:
        self._core = core
        self._wire = wire
        self._beat = beat or Heartbeat()
        self._sent = EngineStats()
        self._quiet = False

    def run(self) -> None:
        """Receive, step, send. An exception here means that there is no going on: whoever started the process is told.

        A request's own errors end that request, and do not come so far.
        """
        self._beat.tick()
        while self._take_in(self._receive()):
            self._beat.tick()
            outputs = self._core.step()
            if outputs.outputs or outputs.stats != self._sent:
                self._sent = outputs.stats
                if bad := self._wire.send(outputs):
                    self._core.scheduler.abort(bad)
            self._core.settle()

    def _receive(self) -> list[ToEngine | Unreadable]:
        constraints = self._core.constraints
        return self._wire.receive(wait_s=min(self._patience(), constraints.patience()), others=constraints.filenos())

    def _patience(self) -> float:
        """How long to wait for a message: not at all while there is work, a moment while there is something to prepare
        (so that it delays nobody who sends one request after another), else without end."""
        if self._core.busy:
            self._quiet = False
            return 0.0
        if not self._quiet:
            self._quiet = True
            return QUIET_S
        return 0.0 if self._core.prepare() else math.inf

    def _take_in(self, messages: list[ToEngine | Unreadable]) -> bool:
        """Apply messages; False on shutdown."""
        scheduler = self._core.scheduler
        for message in messages:
            if isinstance(message, AddRequest):
                self._core.add(message)
            elif isinstance(message, AbortRequests):
                scheduler.abort(message.ids)
            elif isinstance(message, ResetPrefixCache):
                scheduler.reset_prefix_cache()
            elif isinstance(message, Unreadable):
                scheduler.reject(message.id, "it could not be read")
            elif not isinstance(message, Ping):
                return False
        return True
