"""A client that does not read holds up nobody, and takes no more memory than its own answer."""

from __future__ import annotations

import asyncio
import json

import httpx
from fake_engine import FakeClient, Running, running

LONG = "A long answer that goes on and on. " * 20


async def open_stream(server: Running, max_tokens: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    body = {"prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    data = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    await writer.drain()
    return reader, writer


def test_others_go_on_and_nothing_is_lost() -> None:
    client = FakeClient(LONG, endless=True, max_model_len=200_000)

    async def main(server: Running) -> str:
        reader, writer = await open_stream(server, 60_000)  # some 14 MB of events: far more than any buffer holds
        await reader.readline()  # and then it reads no more
        async with httpx.AsyncClient() as http:
            while client.num_in_flight:
                answer = await http.post(server.url + "/v1/completions", json={"prompt": "y", "max_tokens": 3})
                assert answer.status_code == 200
            connections = server.server.server_state.connections  # what is held for them, in bytes
            buffered = sum(c.transport.get_write_buffer_size() for c in connections)
            assert buffered < 1 << 20
        text = (await _read_to_end(reader)).decode()
        writer.close()
        return text

    with running(client) as server:
        text = asyncio.run(main(server))
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    got = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert chunks[-1]["usage"]["completion_tokens"] == 60_000
    expected = (LONG * (len(got) // len(LONG) + 1))[: len(got)]
    assert got == expected and len(got) > 60_000
    assert len(chunks) < 60_000  # what waited came in larger pieces


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        piece = await reader.read(1 << 16)
        assert piece
        data += piece
    return data
