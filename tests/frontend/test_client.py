"""The client's own part in failures: one bad output, an engine whose heart stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire.engine.process import Unreadable, Wire
from quire.errors import EngineDeadError, RequestFailedError
from quire.frontend.client import Client, _how_it_ended
from quire.frontend.detokenizer import Pushed
from quire.frontend.streams import RequestStream
from quire.frontend.watchdog import watch
from quire.messages import EngineFailed, EngineStats, Outputs, Ready, TokenOutput
from quire.observability.heartbeat import Heartbeat
from quire.params import SamplingParams

READY = Ready("cpu", "float32", 0, 0, 9, 4, 64, 4, 64, [], 0, 0, 100, {})


class Broken:
    def push(self, token_ids: Any, *, stop_token: bool = False) -> Pushed:
        raise KeyError("no such token")

    def finish(self) -> Pushed:
        raise AssertionError


def run(test: Callable[[Client, Wire], Any], folder: Path) -> None:
    async def inside() -> None:
        client = Client(folder, None)
        wire = Wire(folder)
        try:
            wire.send(READY)
            await asyncio.wait_for(client.wait_ready(), 5)
            await asyncio.sleep(0.1)  # until the way back is open, too
            await asyncio.wait_for(test(client, wire), 5)
        finally:
            wire.close()
            await client.close()

    asyncio.run(inside())


def submit(client: Client, detokenizer: Any = None) -> RequestStream:
    stream = RequestStream(detokenizer)
    client.submit([1, 2], SamplingParams(max_tokens=5, seed=0), stream, stop_token_ids=[])
    return stream


def test_one_bad_output_takes_no_other_with_it(tmp_path: Path) -> None:
    async def test(client: Client, wire: Wire) -> None:
        streams = [submit(client, Broken() if i == 1 else None) for i in range(3)]
        wire.send(Outputs([TokenOutput(i, [5], "length" if i != 1 else None) for i in range(3)], EngineStats()))
        assert (await streams[0].collect()).token_ids == (await streams[2].collect()).token_ids == [5]
        with pytest.raises(RequestFailedError):
            await streams[1].collect()
        assert client.num_in_flight == 0
        received: list[object] = []
        while len(received) < 4:
            received += wire.receive(wait_s=1)
        assert msgspec.to_builtins(received[3]) == ["abort", [1]], "the engine does not go on with it"

    run(test, tmp_path)


def test_an_output_that_cannot_be_encoded_takes_no_other_with_it(tmp_path: Path) -> None:
    async def test(client: Client, wire: Wire) -> None:
        streams = [submit(client) for _ in range(3)]
        outputs = [TokenOutput(i, [5], "length") for i in range(3)]
        outputs[1] = TokenOutput(1, [1 << 70], "length")
        assert wire.send(Outputs(outputs, EngineStats())) == [1]
        assert (await streams[0].collect()).token_ids == (await streams[2].collect()).token_ids == [5]
        with pytest.raises(RequestFailedError):
            await streams[1].collect()

    run(test, tmp_path)


def test_a_request_that_cannot_be_read_is_known_by_its_id(tmp_path: Path) -> None:
    async def test(client: Client, wire: Wire) -> None:
        for fields in (["add", 7, 5], ["add", "x"], ["abort", 1], 5):
            client._outbox.send(msgspec.msgpack.encode(fields))
        client._outbox.send(b"\xc1")
        await asyncio.sleep(0.2)
        assert wire.receive(wait_s=1) == [Unreadable(7)]

    run(test, tmp_path)


def test_who_waits_is_told_and_a_new_engine_is_welcome(tmp_path: Path) -> None:
    async def test(client: Client, wire: Wire) -> None:
        stream = submit(client)
        client.engine_ended("The engine has ended unexpectedly with code 1")
        with pytest.raises(EngineDeadError, match="code 1 while it worked"):
            await stream.collect()
        with pytest.raises(EngineDeadError, match="code 1"):
            submit(client)
        wire.send(Outputs([], EngineStats(num_running=5)))
        wire.send(READY)
        while client.dead:
            await asyncio.sleep(0.01)
        assert client.stats.num_running == 0 and client.reason == ""
        stream = submit(client)
        wire.send(Outputs([TokenOutput(stream.id, [5], "length")], EngineStats()))
        assert (await stream.collect()).token_ids == [5]

    run(test, tmp_path)


def test_last_words_are_the_reason(tmp_path: Path) -> None:
    async def test(client: Client, wire: Wire) -> None:
        wire.send(EngineFailed("the device is lost", "at 0x5"))
        await asyncio.sleep(0.1)
        client._gone(1)
        assert client.reason == "The engine has ended unexpectedly: the device is lost" and client.detail == "at 0x5"

    run(test, tmp_path)
    assert _how_it_ended(3, "").endswith("with code 3") and "SIGSEGV" in _how_it_ended(-11, "")


def test_the_watchdog(tmp_path: Path) -> None:
    async def inside() -> None:
        path = tmp_path / "beat"
        Heartbeat.create(path)
        beat, seen = Heartbeat(path), Heartbeat(path)
        pings: list[float] = []
        watching = asyncio.create_task(watch(seen, 0.4, lambda: pings.append(0)))
        await asyncio.sleep(0.6)
        assert not watching.done(), "it has not begun to beat"
        for _ in range(12):
            beat.tick()
            await asyncio.sleep(0.1)
        assert not watching.done() and pings
        await asyncio.wait_for(watching, 1.5)

    asyncio.run(inside())
