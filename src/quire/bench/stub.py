"""A server that generates nothing: it answers in OpenAI's form with chunks made beforehand.

It works in steps as an engine does: in each step every stream gets one chunk, each in a write of its own; a step takes
`step_ms`, or no longer than the writes. Run as `python -m quire.bench.stub`, it prints its port and serves until its
stdin is closed. It stands in for a real server in tests and when the client's own ceiling is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import sys
from typing import cast

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max(?:_completion)?_tokens": ?(\d+)')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 1 << 20}]}
_END = b"0\r\n\r\n"


def in_chunk(data: bytes) -> bytes:
    """Bytes as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _frame(kind: str, choices: list[object], **more: object) -> dict[str, object]:
    return {"id": "cmpl-stub", "object": kind, "created": 1, "model": "stub", "choices": choices, **more}


def _chunk(chat: bool) -> bytes:
    said: dict[str, object] = {"delta": {"content": " word"}} if chat else {"text": " word"}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
    return in_chunk(_event(_frame("chat.completion.chunk" if chat else "text_completion", [choice], usage=None)))


class Stub:
    """Owns the streams that are being served.

    Args:
        step: seconds of a step; 0 is as fast as possible.
        fail_every: every so many-th request is refused with 429; 0 is none.
    """

    def __init__(self, step: float = 0.0, fail_every: int = 0) -> None:
        self._step = step
        self._fail_every = fail_every
        self._streams: list[_Stream] = []
        self._running = False
        self.num_requests = self.num_active = self.peak_active = 0

    def protocol(self) -> asyncio.Protocol:
        """For a new connection."""
        return _Connection(self)

    def answer(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Take a complete request."""
        if not head.startswith(b"POST"):
            known = head.startswith((b"GET /v1/models ", b"GET /health "))
            _write_json(transport, 200 if known else 404, _MODELS if known else {"error": {"message": "no such route"}})
            return
        self.num_requests += 1
        if self._fail_every and self.num_requests % self._fail_every == 0:
            _write_json(transport, 429, {"error": {"message": "too many requests", "code": 429}})
            return
        found = _TOKENS.search(body)
        chat = b"/chat/" in head[: head.find(b"\r\n")]
        self.num_active += 1
        self.peak_active = max(self.peak_active, self.num_active)
        self._streams.append(_Stream(transport, int(found.group(1)) if found else 16, chat))
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._one_step)

    def _one_step(self) -> None:
        """One chunk for each stream."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        streams = self._streams
        self._streams = [stream for stream in streams if stream.step()]
        self.num_active -= len(streams) - len(self._streams)
        self._running = bool(self._streams)
        if self._running and self._step:
            loop.call_at(max(begun + self._step, loop.time()), self._one_step)
        elif self._running:
            loop.call_soon(self._one_step)


class _Stream:
    """One answer under way."""

    __slots__ = ("_chunk", "_count", "_done", "_transport")

    def __init__(self, transport: asyncio.Transport, count: int, chat: bool) -> None:
        self._transport = transport
        self._count = count
        self._done = 0
        self._chunk = _CHAT_CHUNK if chat else _TEXT_CHUNK

    def step(self) -> bool:
        """Write one chunk; False when it was the last, or the client is gone."""
        if self._transport.is_closing():
            return False
        chunk = self._chunk if self._done else _HEAD + self._chunk
        self._done += 1
        if self._done < self._count:
            self._transport.write(chunk)
            return True
        usage = {"prompt_tokens": 1, "completion_tokens": self._count, "total_tokens": self._count + 1}
        last = in_chunk(_event(_frame("stub", [], usage=usage)) + b"data: [DONE]\n\n") + _END
        self._transport.write(chunk + last)
        return False


_TEXT_CHUNK, _CHAT_CHUNK = _chunk(chat=False), _chunk(chat=True)


def _write_json(transport: asyncio.Transport, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    transport.write(head.encode() + body)


class _Connection(asyncio.Protocol):
    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        found = _LENGTH.search(head)
        total = end + 4 + (int(found.group(1)) if found else 0)
        if len(self._buffer) >= total:
            body, self._buffer = self._buffer[end + 4 : total], b""
            self._stub.answer(self._transport, head, body)


async def _serve(port: int, step: float, fail_every: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub(step, fail_every).protocol, "127.0.0.1", port, backlog=4096, reuse_port=True)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """Serve until stdin is closed."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--fail-every", type=int, default=0)
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(args.port, args.step_ms / 1000, args.fail_every))


if __name__ == "__main__":
    main()
