"""The life of `quire serve`: port, loading, banner, signals, the engine's death, exit codes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fake_engine import READY
from vocabularies import write_checkpoint

from quire.errors import ConfigError, StartupError
from quire.messages import Progress
from quire.server.banner import LoadingLine, banner
from quire.server.listen import listen, listen_together, url_of

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "frontend"), os.environ.get("PYTHONPATH", "")])}
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}


class Program:
    """A `quire serve` process with the fake engine."""

    def __init__(self, kind: str, folder: Path, *flags: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        script = Path(__file__).parent / "serve_fake.py"
        arguments = [kind, "serve", str(folder), "--port", str(self.port), *flags]
        command = [sys.executable, str(script), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def wait_ready(self) -> set[int]:
        """Status codes of /health until it is 200."""
        seen: set[int] = set()
        end = time.monotonic() + 20
        while 200 not in seen and time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                seen.add(httpx.get(self.url + "/health").status_code)
            time.sleep(0.02)
        return seen

    def end(self, seconds: float = 20) -> tuple[int, list[str]]:
        """(exit code, lines on stderr)"""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors.strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    programs: list[Program] = []
    yield programs
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


def test_from_start_to_signal(folder: Path, programs: list[Program]) -> None:
    program = Program("lives", folder, "--served-model-name", "tiny")
    programs.append(program)
    assert {503, 200} <= program.wait_ready()
    command = [sys.executable, "-m", "quire", "serve", "--port", str(program.port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert second.returncode == 1
    assert f"Port {program.port} on 127.0.0.1 is in use; --port " in second.stderr.splitlines()[-1]
    answers: list[httpx.Response] = []
    url = program.url + "/v1/chat/completions"
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=BODY)))
    thread.start()
    time.sleep(0.5)
    program.process.send_signal(signal.SIGTERM)
    code, lines = program.end()
    thread.join()
    assert code == 0 and answers[0].json()["usage"]["completion_tokens"] == 40 and answers[0].json()["model"] == "tiny"
    text = "\n".join(lines)
    assert "weights:  50% of 2.00 GiB" in text and "1600 tokens in 100 blocks of 16" in text and "engine closed" in text
    assert f"{program.url}/v1" in text and "Stopping: finishing 1 requests" in text
    assert any("quire.request: chatcmpl-" in line and "+ 40 output tokens" in line for line in lines)


def test_second_signal_ends_at_once(folder: Path, programs: list[Program]) -> None:
    program = Program("lives", folder)
    programs.append(program)
    program.wait_ready()
    lines: list[str] = []

    def ask() -> None:
        try:
            with httpx.stream("POST", program.url + "/v1/chat/completions", json={**BODY, "stream": True}) as answer:
                lines.extend(answer.iter_lines())
        except httpx.TransportError:
            pass

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    start = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    code, _ = program.end()
    thread.join(5)
    assert code == 0 and time.monotonic() - start < 2 and len(lines) > 4


def test_shutdown_timeout(folder: Path, programs: list[Program]) -> None:
    program = Program("lives", folder, "--shutdown-timeout", "0.2")
    programs.append(program)
    program.wait_ready()
    thread = threading.Thread(target=_ask_in_vain, args=(program.url,))
    thread.start()
    time.sleep(0.4)
    start = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    code, _ = program.end()
    thread.join(5)
    assert code == 0 and time.monotonic() - start < 2


def _ask_in_vain(url: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.post(url + "/v1/chat/completions", json={**BODY, "max_tokens": 200})


def test_signal_while_loading(folder: Path, programs: list[Program]) -> None:
    program = Program("lives", folder)
    programs.append(program)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            httpx.get(program.url + "/health")
            break
        except httpx.TransportError:
            time.sleep(0.01)
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 0


def test_engine_death(folder: Path, programs: list[Program]) -> None:
    program = Program("dies", folder, "--max-restarts", "0")
    programs.append(program)
    program.wait_ready()
    answer = httpx.post(program.url + "/v1/chat/completions", json={**BODY, "max_tokens": 200})
    assert answer.status_code == 503 and set(answer.json()) == {"error"}
    code, lines = program.end()
    assert code == 1 and lines[-1] == "quire: The engine has ended unexpectedly with code 9; the server has stopped."


def test_start_failures(folder: Path, tmp_path: Path, programs: list[Program]) -> None:
    program = Program("no-start", folder)
    programs.append(program)
    code, lines = program.end()
    assert code == 1 and lines[-1] == "quire: No room for the KV cache: lower --max-model-len to 77."
    program = Program("lives", tmp_path)  # no model in it
    programs.append(program)
    code, lines = program.end()
    assert code == 2 and "config.json" in lines[-1] and not any("Traceback" in line for line in lines)
    shutil.copy(folder / "config.json", tmp_path)
    program = Program("lives", tmp_path)  # no tokenizer in it
    programs.append(program)
    code, lines = program.end()
    assert code == 2 and "no tokenizer.json" in lines[-1] and "engine closed" in lines
    program = Program("lives", tmp_path, "-v")
    programs.append(program)
    assert "Traceback" in "\n".join(program.end()[1])


def test_listen() -> None:
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with pytest.raises(StartupError, match=rf"Port {port} .* in use; --port \d+ is free"):
        listen("127.0.0.1", port)
    sock.close()
    with pytest.raises(ConfigError, match="--host"):
        listen("no.such.host.invalid", 0)
    with listen("0.0.0.0", 0) as sock:
        assert url_of(sock).startswith("http://127.0.0.1:")


def test_a_port_with_another_server() -> None:
    """Whoever is bound to a shared port without listening gets no connection, so the one that listens gets all."""
    with listen_together("127.0.0.1", 0, 2)[0] as first:
        port = first.getsockname()[1]
        others = listen_together("127.0.0.1", port, 2, with_others=True)
        for _ in range(20):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        with pytest.raises(StartupError, match="in use"):
            listen("127.0.0.1", port)
        for other in others:
            other.close()


def test_banner() -> None:
    ready = msgspec.structs.replace(
        READY,
        weights_bytes=15 << 30,
        kv_bytes=100 << 30,
        num_blocks=50_001,
        max_model_len=8192,
        max_num_seqs=256,
        seconds={"load": 1.0},
    )
    options = {"names": ("m",), "url": "http://x:1", "max_body_bytes": 4 << 20, "max_choices": 16, "seconds": 9.87}
    text = banner(ready, keys=0, open_host=True, **options)  # type: ignore[arg-type]
    assert len(text.splitlines()) <= 12 and "15.00 GiB" in text and "800000 tokens" in text
    assert "97.7 requests of full length" in text and "set --api-key" in text and "9.9 s (load 1.0)" in text
    several = banner(ready, keys=0, open_host=False, num_processes=3, **options)  # type: ignore[arg-type]
    assert "3 processes share the port" in several and len(several.splitlines()) <= 12
    assert "on, 2 keys" in banner(ready, keys=2, open_host=True, **options)  # type: ignore[arg-type]


def test_loading_line() -> None:
    import io

    out = io.StringIO()
    line = LoadingLine(out)
    for done in range(101):
        line(Progress("weights", done << 20, 100 << 20))
    line.end()
    assert out.getvalue().splitlines() == ["weights:   0% of 100.0 MiB", "weights: 100% of 100.0 MiB"]
