"""`--api-server-count`: several processes on one port are one server, in its answers, its numbers and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from vocabularies import write_checkpoint

COUNT = 3
PROGRAM = Path(__file__).with_name("serve_wire.py")
BODY = {"prompt": "Hello world, how are you today?", "max_tokens": 20}


class Server:
    """A running server of several processes."""

    def __init__(self, folder: Path, count: int = COUNT, *, stream_interval: int = 1, **environment: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(PROGRAM), "serve", str(folder), "--port", str(self.port)]
        command += ["--api-server-count", str(count), "--stream-interval", str(stream_interval), "--max-restarts", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.codes: list[int] = []
        end = time.monotonic() + 40
        while 200 not in self.codes and time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                self.codes.append(httpx.get(self.url + "/health").status_code)
            time.sleep(0.02)

    @property
    def members(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "quire.server.member" in child.cmdline()]

    def metrics(self) -> dict[str, float]:
        """Sums over labels."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(self.url + "/metrics").text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def end(self, seconds: float = 20) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        if server.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(server.process.pid).children(recursive=True):
                    child.kill()
            server.process.kill()
            server.process.wait()


async def ask_many(url: str, count: int, **more: object) -> list[httpx.Response | Exception]:
    """So many requests at once, each on a connection of its own."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(url + "/v1/completions", json={**BODY, **more})

    return await asyncio.gather(*(ask() for _ in range(count)), return_exceptions=True)  # type: ignore[return-value]


def test_one_server(folder: Path, servers: list[Server]) -> None:
    server = Server(folder)
    servers.append(server)
    assert server.codes[-1] == 200 and 200 not in server.codes[:-1]
    assert [httpx.get(server.url + "/health").status_code for _ in range(20)] == [200] * 20
    assert len(server.members) == COUNT - 1

    # every process answers, and each of them shows the numbers of all
    answers = asyncio.run(ask_many(server.url, 60))
    assert all(answer.json()["usage"]["completion_tokens"] == 20 for answer in answers)  # type: ignore[union-attr]
    assert len({answer.json()["id"] for answer in answers}) == 60  # type: ignore[union-attr]
    pages = [server.metrics() for _ in range(12)]
    for page in pages:
        assert page["vllm:request_success_total"] == 60 and page["vllm:generation_tokens_total"] == 1200
        assert page["vllm:time_to_first_token_seconds_count"] == page["vllm:e2e_request_latency_seconds_count"] == 60
        assert page["vllm:num_requests_running"] == 0 and page["quire:engine_steps_total"] >= 20
    assert len({page["process_start_time_seconds"] for page in pages}) == 1  # always the main process's

    second = subprocess.run(
        [sys.executable, "-m", "quire", "serve", "--port", str(server.port), "--api-server-count", "2"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1 and f"Port {server.port} on 127.0.0.1 is in use" in second.stderr

    # a signal: what runs finishes in every process
    async def drain() -> list[httpx.Response | Exception]:
        asking = asyncio.create_task(ask_many(server.url, 30, max_tokens=900, stream=True))
        while (await asyncio.to_thread(server.metrics))["vllm:num_requests_running"] < 30:
            await asyncio.sleep(0.01)
        busy = [p for p in [psutil.Process(server.process.pid), *server.members] if _num_clients(p, server.port)]
        assert len(busy) > 1
        server.process.send_signal(signal.SIGTERM)
        return await asking

    members = server.members
    answers = asyncio.run(drain())
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)  # type: ignore[union-attr]
    code, log = server.end()
    assert code == 0 and f"{COUNT} processes share the port" in log and "Stopping: finishing 30 requests" in log
    assert not any(member.is_running() for member in members)


def _num_clients(process: psutil.Process, port: int) -> int:
    return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in process.net_connections())


def test_a_lost_process_ends_the_server(folder: Path, servers: list[Server]) -> None:
    server = Server(folder, 2)
    servers.append(server)
    server.members[0].kill()
    code, log = server.end()
    assert code == 1 and "An API process has ended unexpectedly" in log


def test_the_engines_end_is_told_in_every_process(folder: Path, servers: list[Server]) -> None:
    server = Server(folder, 2, QUIRE_FAKE_STEP_MS="20")
    servers.append(server)
    [engine] = [c for c in psutil.Process(server.process.pid).children() if "wire_engine.py" in " ".join(c.cmdline())]

    async def lose_it() -> list[httpx.Response | Exception]:
        asking = asyncio.create_task(ask_many(server.url, 20, max_tokens=250, stream=True, prompt=[65]))
        while (await asyncio.to_thread(server.metrics))["vllm:num_requests_running"] < 20:
            await asyncio.sleep(0.01)
        engine.kill()
        return await asking

    answers = asyncio.run(lose_it())
    assert all('"ServiceUnavailableError"' in answer.text for answer in answers)  # type: ignore[union-attr]
    code, log = server.end()
    assert code == 1 and "The engine has ended unexpectedly" in log


def test_the_main_process_takes_the_others_along(folder: Path, servers: list[Server]) -> None:
    server = Server(folder)
    servers.append(server)
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    assert len(family) == COUNT and not psutil.wait_procs(family, timeout=5)[1]


def test_a_failed_start_leaves_nobody_behind(folder: Path, servers: list[Server]) -> None:
    mark = f"{os.getpid()}-{time.monotonic()}"
    server = Server(folder, COUNT, QUIRE_FAKE_FAIL="1", QUIRE_FAKE_MARK=mark)
    servers.append(server)
    code, log = server.end()
    assert code != 0 and log.strip().splitlines()[-1].endswith("lower --max-model-len to 77.")
    assert "Traceback" not in log
    end = time.monotonic() + 5
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def _marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with this mark in their environment, in whatever generation."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("QUIRE_FAKE_MARK") == mark:
                found.append(process)
    return found


def test_the_stream_interval(folder: Path, servers: list[Server]) -> None:
    server = Server(folder, 1, stream_interval=8)
    servers.append(server)
    [answer] = asyncio.run(ask_many(server.url, 1, max_tokens=50, stream=True, ignore_eos=True))
    assert isinstance(answer, httpx.Response) and server.metrics()["vllm:generation_tokens_total"] == 50
    num_chunks = answer.text.count('"text":')
    assert 2 <= num_chunks <= 8  # 1, 8, 8, 8, 8, 8, 8, 1, or fewer
