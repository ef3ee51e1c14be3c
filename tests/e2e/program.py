"""A running `quire serve` with its whole family of processes, and what must be left of it: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil

FAULTY = Path(__file__).with_name("faulty_serve.py")
FLOAT32 = ("--dtype", "float32", "--cpu-kernels", "torch")
"""Numbers that do not depend on who shares a step."""


class Program:
    """The server, started as a program of its own.

    Args:
        flags: of `quire serve`.
        script: a program to run in place of `python -m quire`.
        port: to listen on; default a free one.
        env: more of the environment.
    """

    def __init__(self, *flags: str, script: Path | None = None, port: int | None = None, **env: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = port or int(sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary = Path(tempfile.mkdtemp(prefix="quire-test-"))  # all that a run may leave behind is in here
        what = ["-m", "quire"] if script is None else [str(script)]
        self.log_path = self.temporary / "log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *what, "serve", *flags, "--port", str(self.port)],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary), **env},
            )

    # ---- what it says --------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self.log_path.read_text()

    def status(self, path: str = "/health") -> tuple[int, str]:
        """Status and body; 0 where nobody answers."""
        try:
            answer = httpx.get(self.url + path, timeout=5)
        except httpx.TransportError as error:
            return 0, str(error)
        return answer.status_code, answer.text

    def wait_status(self, wanted: int, seconds: float = 60, path: str = "/health") -> float:
        """Wait for a status code; returns the seconds that it took."""
        begun = time.monotonic()
        while (found := self.status(path))[0] != wanted:
            waited = time.monotonic() - begun
            assert waited < seconds, f"{path} says {found} after {waited:.1f} s\n{self.log}"
            assert self.process.poll() is None or wanted == 0, self.log
            time.sleep(0.02)
        return time.monotonic() - begun

    def metric(self, name: str) -> float:
        """A metric, summed over its labels."""
        lines = httpx.get(self.url + "/metrics", timeout=10).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((name + "{", name + " ")))

    def wait_running(self, count: int, seconds: float = 20) -> None:
        """Until so many requests run or wait."""
        end = time.monotonic() + seconds
        while self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting") < count:
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    def idle_problems(self) -> list[str]:
        """What is not as it must be where nobody asks for anything."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return [f"{name} is {value:g}" for name in names if (value := self.metric(name))]

    def wait_idle(self, seconds: float = 2) -> None:
        """Until nothing runs, nothing waits and every block is free."""
        end = time.monotonic() + seconds
        while problems := self.idle_problems():
            assert time.monotonic() < end, problems
            time.sleep(0.02)

    # ---- its family ----------------------------------------------------------------------------------------------

    @property
    def family(self) -> list[psutil.Process]:
        """All its processes, itself first."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    @property
    def engine(self) -> psutil.Process:
        """The newest engine process."""
        children = psutil.Process(self.process.pid).children()
        found = [c for c in children if any("launch.child" in a or "faulty_engine" in a for a in c.cmdline())]
        return max(found, key=lambda process: process.create_time())

    def num_fds(self) -> int:
        """Open descriptors of the main process and the engine."""
        return psutil.Process(self.process.pid).num_fds() + self.engine.num_fds()

    # ---- its end -------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait_end(self, seconds: float = 40) -> int:
        """Its exit code."""
        return self.process.wait(timeout=seconds)

    def stop(self, seconds: float = 40) -> int:
        """Have it drain and end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_end(seconds)

    def left_behind(self, family: list[psutil.Process], seconds: float = 5) -> list[str]:
        """Processes and files that should be gone by now."""
        _, alive = psutil.wait_procs(family, timeout=seconds)
        files = [str(p) for p in self.temporary.rglob("*") if p != self.log_path]
        sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if str(self.temporary) in line]
        return [*map(str, alive), *files, *sockets]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in reversed(self.family):
                    process.kill()
            self.process.wait()


# ---- clients -----------------------------------------------------------------------------------------------------


async def ask(http: httpx.AsyncClient, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, str]:
    """One request: (status, text of its one choice), or (status, the error). An error in a stream is its status.

    Status 0 is a connection that broke, -1 a stream that ended without a word.
    """
    try:
        if body.get("stream"):
            return await _ask_stream(http, body, path)
        answer = await http.post(path, json=body)
    except httpx.TransportError as error:
        return 0, repr(error)
    return answer.status_code, _text(answer.json()) if answer.status_code == 200 else answer.text


async def _ask_stream(http: httpx.AsyncClient, body: dict[str, Any], path: str) -> tuple[int, str]:
    pieces: list[str] = []
    async with http.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            return answer.status_code, (await answer.aread()).decode()
        async for event in events(answer):
            if event == "[DONE]":
                return 200, "".join(pieces)
            data = json.loads(event)
            if "error" in data:
                return data["error"]["code"], event
            pieces += [_text(data)] if data["choices"] else []
    return -1, "the stream ended without an event that says so"


async def events(answer: httpx.Response) -> AsyncIterator[str]:
    """The data of server-sent events."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _text(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or ""


async def ask_all(
    url: str, requests: list[tuple[str, dict[str, Any]]], *, at_once: int = 64, timeout: float = 120
) -> list[tuple[int, str]]:
    """Many requests, (path, body) each, so many at a time."""
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits) as http:

        async def one(path: str, body: dict[str, Any]) -> tuple[int, str]:
            async with gate:
                return await ask(http, body, path)

        return await asyncio.gather(*(one(path, body) for path, body in requests))


def assert_same(requests: list[tuple[str, dict[str, Any]]], answers: list[Any], expected: list[Any]) -> None:
    """The answers of two runs, bit by bit: all that are greedy, and all drawn ones but one in a thousand.

    Batches of other sizes round the last digit of a logit otherwise, about 1e-5 of it; so often a uniform number falls
    between two tokens' shares of the law. What a fault breaks is greedy answers as well.
    """
    different = [i for i, (one, other) in enumerate(zip(answers, expected, strict=True)) if one != other]
    shown = [(requests[i], answers[i], expected[i]) for i in different[:3]]
    assert not [i for i in different if not requests[i][1].get("temperature")], shown
    assert len(different) <= 1 + len(requests) // 1000, (len(different), shown)
