"""A client that goes away takes its work with it: streaming or not, queued or running, one choice or many."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fake_engine import FakeClient, Running, running

STEP = 0.01
PATH = "/v1/chat/completions"


async def send_and_leave(server: Running, body: dict[str, object], stay: float) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps({"messages": [{"role": "user", "content": "x"}], **body}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    await asyncio.sleep(stay)
    writer.close()


def wait_until_idle(client: FakeClient, seconds: float) -> None:
    end = time.monotonic() + seconds
    while client.num_in_flight and time.monotonic() < end:
        time.sleep(0.001)
    assert client.num_in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_stops_within_two_steps(stream: bool, n: int) -> None:
    client = FakeClient(step_s=STEP, endless=True)
    with running(client) as server:
        asyncio.run(send_and_leave(server, {"stream": stream, "n": n, "max_tokens": 200}, 0.1))
        wait_until_idle(client, 2 * STEP + 0.05)
        assert len(client.submitted) == n and max(client.steps.values()) < 20
        assert server.metrics.finished["abort"] == n


def test_storm() -> None:
    client = FakeClient(step_s=0.002, endless=True)

    async def storm(server: Running) -> None:
        await asyncio.gather(
            *(
                send_and_leave(server, {"stream": i % 2 == 0, "n": 1 + i % 3, "max_tokens": 200}, 0.001 * (i % 40))
                for i in range(200)
            )
        )

    with running(client) as server:
        asyncio.run(storm(server))
        wait_until_idle(client, 2.0)
        assert sum(server.metrics.finished.values()) == len(client.submitted)
        assert server.metrics.finished["error"] == 0


def test_unfinished_body() -> None:
    client = FakeClient()

    async def leave(server: Running) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()

    with running(client) as server:
        asyncio.run(leave(server))
    assert client.submitted == []
