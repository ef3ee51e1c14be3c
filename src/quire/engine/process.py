"""The engine's end of the wire: messages in, one step, messages out. Sleeps when there is nothing to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
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
    ResetPrefixCache,
    ToEngine,
    TokenOutput,
)

log = logging.getLogger("quire.engine")

QUIET_S = 0.1
"""After so long without work the device may prepare for later."""


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

    def send(self, message: FromEngine) -> None:
        """Send without waiting: outputs to whom they belong, everything else to all."""
        if len(self._outboxes) > 1 and isinstance(message, Outputs):
            self._send_apart(message)
            return
        data = self._encoder.encode(message)
        for outbox in self._outboxes:
            outbox.send(data)

    def _send_apart(self, message: Outputs) -> None:
        """Each frontend its own outputs; without any only the first one is woken, for the sake of the gauges."""
        parts: list[list[TokenOutput]] = [[] for _ in self._outboxes]
        for output in message.outputs:
            parts[output.id % len(parts)].append(output)
        for index, (outbox, part) in enumerate(zip(self._outboxes, parts, strict=True)):
            if part or index == 0:
                outbox.send(self._encoder.encode(Outputs(part, message.stats)))

    def receive(self, *, wait_s: float, others: Sequence[int] = ()) -> list[ToEngine]:
        """All messages that are there; if there is none, wait that long for the first, or until one of the other
        descriptors is readable."""
        messages: list[ToEngine] = []
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
                log.error("dropped a message of %d bytes that is none of ours: %s", len(data), error)

    def close(self) -> None:
        """Let what was sent go out, then close."""
        self._context.destroy(linger=1000)


class EngineProcess:
    """Serves one core until told to shut down."""

    def __init__(self, core: EngineCore, wire: Wire) -> None:
        self._core = core
        self._wire = wire
        self._sent = EngineStats()
        self._quiet = False

    def run(self) -> None:
        """Receive, step, send. An exception here is a device error: the process ends and its clients are told."""
        while self._take_in(self._receive()):
            outputs = self._core.step()
            if outputs.outputs or outputs.stats != self._sent:
                self._sent = outputs.stats
                self._wire.send(outputs)
            self._core.settle()

    def _receive(self) -> list[ToEngine]:
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

    def _take_in(self, messages: list[ToEngine]) -> bool:
        """Apply messages; False on shutdown."""
        scheduler = self._core.scheduler
        for message in messages:
            if isinstance(message, AddRequest):
                self._core.add(message)
            elif isinstance(message, AbortRequests):
                scheduler.abort(message.ids)
            elif isinstance(message, ResetPrefixCache):
                scheduler.reset_prefix_cache()
            else:
                return False
        return True
