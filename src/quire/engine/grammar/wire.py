"""What crosses between the engine and its grammar workers, and the socket on which it does.

    engine ── Compile, Start, Advance, Drop, Forget ──► worker
    engine ◄── Hello, Compiled, Masked ──────────────── worker

Masks themselves lie in memory that both sides map: one line of `line_bytes(vocab_size)` for each matcher.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TypeVar

import msgspec

from quire.messages import Grammar

FORK = b"fork"
"""What the engine says to the parent of the workers, with one end of a socket."""
HEADER = 4
"""Bytes of a frame's length."""
CHUNK = 1 << 18
T = TypeVar("T")


def line_bytes(vocab_size: int) -> int:
    """Bytes of one mask: bit t % 8 of byte t // 8 is token t, in whole words of 32 bits."""
    return (vocab_size + 31) // 32 * 4


class Setup(msgspec.Struct, array_like=True, frozen=True):
    """What the parent of all workers needs to know.

    Args:
        tokenizer: path of tokenizer.json.
        vocab_size: columns of the model's logits.
        end_token_ids: tokens that end an output.
        num_lines: of the mask memory.
        memory_bytes: that one worker may take in addition to what all share.
        threads: that compute masks side by side.
    """

    tokenizer: str
    vocab_size: int
    end_token_ids: list[int]
    num_lines: int
    memory_bytes: int
    threads: int


class Compile(msgspec.Struct, tag="compile", array_like=True, frozen=True):
    """Make a grammar; answered by Compiled."""

    key: int
    grammar: Grammar


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """A request begins, or goes on with, a grammar that is compiled; answered by Masked.

    Args:
        key: of the grammar.
        matcher: a number for this request's state.
        line: where its masks go.
        tokens: `pack_ids` of what it has generated under this grammar.
        min_tokens: no end token before so many were generated in all, unless nothing else can follow.
        num_before: generated before the grammar began.
        endless: never an end token, unless nothing else can follow.
        gap: white space may stand before the first token of the grammar.
    """

    key: int
    matcher: int
    line: int
    tokens: bytes
    min_tokens: int = 0
    num_before: int = 0
    endless: bool = False
    gap: bool = False


class Advance(msgspec.Struct, tag="advance", array_like=True, frozen=True):
    """These requests, all under one grammar, have one token more; answered by one Masked."""

    matchers: list[int]
    tokens: list[int]


class Drop(msgspec.Struct, tag="drop", array_like=True, frozen=True):
    """These requests have ended."""

    matchers: list[int]


class Forget(msgspec.Struct, tag="forget", array_like=True, frozen=True):
    """Nobody asks for this grammar any more."""

    key: int


ToWorker = Compile | Start | Advance | Drop | Forget


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """A worker has begun; its process id."""

    pid: int


class Compiled(msgspec.Struct, tag="compiled", array_like=True, frozen=True):
    """A grammar is ready, or cannot be: `error` is a sentence for whoever wrote it."""

    key: int
    error: str | None = None


class Masked(msgspec.Struct, tag="masked", array_like=True, frozen=True):
    """The masks of these matchers lie in their lines.

    Args:
        matchers: all that the job was about.
        errors: those that went wrong, and how.
        seconds: of processor time.
    """

    matchers: list[int]
    errors: dict[int, str] = {}
    seconds: float = 0.0


FromWorker = Hello | Compiled | Masked


class Closed(Exception):
    """The other end is gone."""


class Channel:
    """Frames over a stream socket: a length, then msgpack. Owns the socket.

    Args:
        end: connected.
        incoming: what the other side sends.
        wait: let `receive` wait for the next message; else nothing here ever waits.
    """

    def __init__(self, end: socket.socket, incoming: type[T] | object, *, wait: bool = False) -> None:
        end.setblocking(wait)
        self._socket = end
        self._wait = wait
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Send, or keep what the other side does not take yet until `flush`.

        Raises:
            Closed: there is no other side.
        """
        self.post(message)
        self.flush()

    def post(self, message: object) -> None:
        """Keep a message until `flush`."""
        data = self._encoder.encode(message)
        self._out += len(data).to_bytes(HEADER, "little") + data

    def flush(self) -> bool:
        """Send what was kept; whether nothing is left."""
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return False
        except OSError as error:
            raise Closed from error
        return True

    def receive(self) -> list[object]:
        """All whole messages that are there; where the channel waits, at least one.

        Raises:
            Closed: the other side is gone, and everything it sent was received.
        """
        messages: list[object] = []
        while True:
            messages += self._whole()
            if messages and self._wait:
                return messages
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                return messages
            except OSError:
                data = b""
            if not data:
                if messages:
                    return messages
                raise Closed
            self._in += data

    def close(self) -> None:
        """Let go of the socket."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _whole(self) -> list[object]:
        messages, at = [], 0
        while len(self._in) - at >= HEADER:
            end = at + HEADER + int.from_bytes(self._in[at : at + HEADER], "little")
            if len(self._in) < end:
                break
            messages.append(self._decoder.decode(bytes(self._in[at + HEADER : end])))
            at = end
        del self._in[:at]
        return messages
