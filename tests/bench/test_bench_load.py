"""The load on a stub server in this process: order, limits, connections, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quire.bench.ceiling import stub
from quire.bench.exchange import Outcome
from quire.bench.load import Job, Load, Target, find_address, now
from quire.bench.stub import Stub, in_chunk
from quire.bench.workers import run_job, run_loop, split
from quire.errors import ConfigError, QuireError, UnavailableError

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
WORD = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def job(
    port: int, count: int, *, limit: int | None = None, tokens: int = 5, due: list[float] | None = None, **more: Any
) -> Job:
    bodies = [json.dumps({"prompt": "x", "max_tokens": tokens}).encode()] * count
    target = Target("127.0.0.1", port, tls=False, path="/v1/completions", headers=b"x-test: 1\r\n")
    fields = {"timeout": 20.0, **more}
    return Job(target, list(range(count)), bodies, due or [0.0] * count, limit, **fields)


def against(protocol: Callable[[], asyncio.Protocol], make: Callable[[int], Job]) -> list[Outcome]:
    """Run a job against a server in the same loop."""

    async def run() -> list[Outcome]:
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        load = Load(make(server.sockets[0].getsockname()[1]))
        await load.prepare()
        try:
            return await load.run(now())
        finally:
            server.close()

    return run_loop(run())


class Scripted(asyncio.Protocol):
    """Answers each request of a connection with the next of some byte strings; None closes."""

    connections: list[Scripted]
    requests: list[bytes]

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.requests.append(data)
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            self.transport.close()
            return
        self.transport.write(answer)
        if b"close" in answer or (b"length" not in answer and b"chunked" not in answer):
            self.transport.close()


def scripted(count: int, *answers: bytes | None, limit: int = 1) -> tuple[list[Outcome], type[Scripted]]:
    kind = type("Fresh", (Scripted,), {"connections": [], "requests": []})
    # the first connection only looks whether anybody is there
    return against(lambda: kind(*answers), lambda port: job(port, count, limit=limit)), kind


def test_every_request_is_answered_once() -> None:
    server = Stub()
    outcomes = against(server.protocol, lambda port: job(port, 50, tokens=7))
    assert [outcome.index for outcome in outcomes] == list(range(50)) and server.num_requests == 50
    assert {(outcome.error, outcome.status, outcome.output_tokens) for outcome in outcomes} == {("", 200, 7)}
    assert all(outcome.start <= min(outcome.times) and max(outcome.times) == outcome.end for outcome in outcomes)


@pytest.mark.parametrize("limit", [1, 3, 16])
def test_the_limit_is_reached_and_never_passed(limit: int) -> None:
    server = Stub()
    outcomes = against(server.protocol, lambda port: job(port, 60, limit=limit, tokens=60))
    assert server.peak_active == limit and not any(outcome.error for outcome in outcomes)


def test_nothing_is_sent_before_it_is_due() -> None:
    server = Stub()
    due = [0.0, 0.02, 0.02, 0.05]
    begun = now()
    outcomes = against(server.protocol, lambda port: job(port, 4, due=due))
    assert all(outcome.start - begun >= moment for outcome, moment in zip(outcomes, due, strict=True))


def test_requests_without_an_end() -> None:
    assert against(Stub().protocol, lambda port: job(port, 0)) == []


def test_connections_are_used_again() -> None:
    answer = STREAM + b"transfer-encoding: chunked\r\n\r\n" + in_chunk(WORD + DONE) + b"0\r\n\r\n"
    outcomes, server = scripted(6, *[answer] * 6)
    assert not any(outcome.error for outcome in outcomes)
    assert len(server.connections) == 2  # one to look, one for all
    assert server.requests[0].startswith(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nx-test: 1\r\n" in server.requests[0] and len(server.requests) == 6


def test_a_connection_closed_while_idle_costs_no_request() -> None:
    answer = STREAM + b"transfer-encoding: chunked\r\n\r\n" + in_chunk(WORD) + b"0\r\n\r\n"
    outcomes, server = scripted(3, answer, None)
    assert not any(outcome.error for outcome in outcomes) and len(server.connections) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad\r\ncontent-length: 32\r\n\r\n" + b'{"error": {"message": "no way"}}', "HTTP 400: no way"),
        (b"HTTP/1.1 502 Bad\r\nconnection: close\r\n\r\n<html>gateway</html>", "HTTP 502: <html>gateway</html>"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "no event stream: {}"),
        (
            STREAM + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + in_chunk(WORD),
            "connection closed in the middle",
        ),
        (STREAM + b"connection: close\r\n\r\n" + WORD, "connection closed before [DONE]"),
        (STREAM + b"content-length: 0\r\n\r\n", "the answer held no chunk"),
        (STREAM + b'connection: close\r\n\r\ndata: {"error": {"message": "died"}}\n\n', "died"),
        (b"nonsense\r\n\r\nclose", "no HTTP/1.1 answer"),
    ],
)
def test_failures(answer: bytes, error: str) -> None:
    outcomes, _ = scripted(2, answer, answer)
    assert [outcome.error[: len(error)] for outcome in outcomes] == [error] * 2


def test_a_stream_that_ends_with_the_connection() -> None:
    outcomes, _ = scripted(2, STREAM + b"connection: close\r\n\r\n" + WORD + DONE)
    assert [outcome.error for outcome in outcomes] == ["", ""]


def test_refused_requests() -> None:
    server = Stub(fail_every=4)
    outcomes = against(server.protocol, lambda port: job(port, 12))
    refused = [outcome for outcome in outcomes if outcome.refused]
    assert len(refused) == 3 and {outcome.error for outcome in refused} == {"HTTP 429: too many requests"}


def test_no_answer_in_time() -> None:
    class Silent(asyncio.Protocol):
        pass

    outcomes = against(Silent, lambda port: job(port, 3, limit=2, timeout=0.05))
    assert [outcome.error for outcome in outcomes] == ["no complete answer within 0.05 s"] * 3


def test_nobody_there() -> None:
    def find(host: str, port: int) -> Awaitable[Any]:
        return find_address(host, port)

    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        asyncio.run(find("127.0.0.1", 9))
    with pytest.raises(ConfigError, match="cannot be found"):
        asyncio.run(find("no.such.host.invalid", 9))


def test_split() -> None:
    parts = split(job(1, 10, limit=5, due=[float(i) for i in range(10)]), 3)
    assert [part.max_concurrency for part in parts] == [2, 2, 1]
    assert sorted(index for part in parts for index in part.indices) == list(range(10))
    assert all(list(part.due) == [float(i) for i in part.indices] for part in parts)
    assert len(split(job(1, 10, limit=2), 3)) == 2 and len(split(job(1, 2), 3)) == 2
    assert len(split(job(1, 0), 3)) == 1


def test_several_workers() -> None:
    done: list[int] = []
    with stub() as port:
        run = run_job(job(port, 30, limit=6), 2, done.append)
    assert [outcome.index for outcome in run.outcomes] == list(range(30)) and sum(done) == 30
    assert not any(outcome.error for outcome in run.outcomes)
    assert all(outcome.start >= run.start for outcome in run.outcomes)
    with pytest.raises(QuireError, match="No server answers"):
        run_job(job(port, 4), 2)
