"""`quire bench startup`: from the command to a server that answers, several times over."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from quire.bench.options import StartupOptions
from quire.bench.report import write_json
from quire.errors import ConfigError, StartupError

POLL_SECONDS = 0.005
_READY = re.compile(r"^\s*ready\s.*?after ([\d.]+) s(?: \((.*)\))?", re.MULTILINE)
_STAGE = re.compile(r"([^,]+?) ([\d.]+)(?:,|$)")


class Start(msgspec.Struct, frozen=True):
    """One start, in seconds from the command.

    Attributes:
        listening: the port takes connections.
        ready: /health answers 200.
        own: what the server itself says it took; 0 if it says nothing.
        stages: what it says its parts took.
    """

    listening: float
    ready: float
    own: float
    stages: dict[str, float]


def run_startup(options: StartupOptions, flags: Sequence[str]) -> list[Start]:
    """Start `quire serve` with some flags, wait, stop it, and so on; printed and saved.

    Raises:
        ConfigError: the flags hold a port.
        StartupError: it ended, or took too long.
    """
    for flag in flags:
        if flag.partition("=")[0] == "--port":
            raise ConfigError("startup takes a free port itself: leave --port out.")
    starts = []
    for i in range(options.num_iters):
        starts.append(measure_start([sys.executable, "-m", "quire", "serve", *flags], options.timeout))
        print(_line(f"start {i + 1}", starts[-1]), flush=True)
    ready = [start.ready for start in starts]
    mean = statistics.mean(ready)
    print(
        f"From the command to ready: mean {mean:.2f} s, best {min(ready):.2f} s, worst {max(ready):.2f} s", flush=True
    )
    if options.output_json:
        content = {
            "flags": list(flags),
            "ready": ready,
            "mean_ready": mean,
            "min_ready": min(ready),
            "max_ready": max(ready),
            "starts": starts,
        }
        write_json(Path(options.output_json), content)
    return starts


def measure_start(command: Sequence[str], timeout: float) -> Start:
    """Run a server until it is healthy, then stop it.

    Args:
        command: without --port.
        timeout: seconds it may take.

    Raises:
        StartupError: it ended, or took too long; with its last line.
    """
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        process = subprocess.Popen([*command, "--port", str(port)], stderr=log, start_new_session=True)
        try:
            listening = ready = None
            while ready is None:
                if process.poll() is not None:
                    raise StartupError(f"quire serve ended with code {process.returncode}: {_last_line(_text(log))}")
                if time.monotonic() - begun > timeout:
                    raise StartupError(
                        f"quire serve was not ready within --timeout {timeout:g} s: {_last_line(_text(log))}"
                    )
                connected, healthy = _health(port)
                passed = time.monotonic() - begun
                listening = passed if connected and listening is None else listening
                ready = passed if healthy else None
                if ready is None:
                    time.sleep(POLL_SECONDS)
            time.sleep(0.05)  # the banner follows the first answer
            own, stages = read_banner(_text(log))
            return Start(listening or ready, ready, own, stages)
        finally:
            _stop(process)


def read_banner(text: str) -> tuple[float, dict[str, float]]:
    """(seconds, seconds by stage) that a server printed when it was ready; 0 and {} if it did not."""
    found = _READY.search(text)
    if not found:
        return 0.0, {}
    stages = {name.strip(): float(value) for name, value in _STAGE.findall(found.group(2) or "")}
    return float(found.group(1)), stages


def _line(name: str, start: Start) -> str:
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in start.stages.items())
    said = f"; it says {start.own:.1f} s" + (f" ({stages})" if stages else "") if start.own else ""
    return f"{name}: listening after {start.listening:.2f} s, ready after {start.ready:.2f} s{said}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _health(port: int) -> tuple[bool, bool]:
    """(somebody listens, and is healthy)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.connect()
    except OSError:
        return False, False
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return True, connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return True, False


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
