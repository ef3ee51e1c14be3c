"""The orderly ends: draining, a second signal, a new server that takes the port; and what a server lets be seen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from program import FLOAT32, Program, ask_all

BODY: dict[str, Any] = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "temperature": 0}
LOOPS = int(os.environ.get("QUIRE_TEST_LOOPS", "1"))


def start_requests(program: Program, count: int, **more: Any) -> tuple[threading.Thread, list[tuple[int, str]]]:
    """So many that run, half of them streams; what comes of them."""
    answers: list[tuple[int, str]] = []
    bodies = [("/v1/completions", {**BODY, **more, "stream": i % 2 == 0, "seed": i}) for i in range(count)]
    thread = threading.Thread(target=lambda: answers.extend(asyncio.run(ask_all(program.url, bodies))))
    thread.start()
    program.wait_running(count)
    return thread, answers


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_lets_all_of_50_finish(processes: int) -> None:
    """R5: ready says 503 within half a second, what comes is refused, what runs is finished, exit code 0."""
    with Program(*FLOAT32, "--api-server-count", str(processes)) as program:
        program.wait_status(200)
        thread, answers = start_requests(program, 50)
        family = program.family
        program.signal(signal.SIGTERM)
        assert program.wait_status(503, 0.5, "/ready") <= 0.5
        refused = httpx.post(program.url + "/v1/completions", json=BODY)
        assert refused.status_code == 503 and refused.headers["retry-after"] and "stopping" in refused.text
        assert program.status("/live")[0] == 200
        thread.join(60)
        assert [status for status, _ in answers] == [200] * 50
        assert program.wait_end(10) == 0
        assert not program.left_behind(family)


def test_a_second_signal_ends_it_now() -> None:
    with Program(*FLOAT32) as program:
        program.wait_status(200)
        thread, answers = start_requests(program, 8, max_tokens=1900)
        family = program.family
        program.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert program.process.poll() is None
        begun = time.monotonic()
        program.signal(signal.SIGTERM)
        assert program.wait_end(5) == 0 and time.monotonic() - begun <= 2.0
        thread.join(5)
        assert not any(status == 200 for status, _ in answers)
        assert not program.left_behind(family)


def test_a_new_server_takes_the_port_and_nobody_notices() -> None:
    """R13: requests one after the other, on new connections, while servers change; none fails."""
    flags = (*FLOAT32, "--reuse-port")
    failed: list[str] = []
    done = threading.Event()
    count = 0

    def ask(url: str, number: int) -> None:
        nonlocal count
        while not done.is_set():
            body = {"prompt": f"Number {number}", "max_tokens": 3}
            try:
                answer = httpx.post(url + "/v1/completions", json=body, timeout=30)
            except httpx.TransportError as error:
                failed.append(repr(error))
            else:
                if answer.status_code != 200:
                    failed.append(answer.text)
            count += 1

    with Program(*flags) as first:
        first.wait_status(200)
        threads = [threading.Thread(target=ask, args=(first.url, i)) for i in range(4)]
        for thread in threads:
            thread.start()
        old = first
        for _ in range(LOOPS):
            new = Program(*flags, port=first.port)
            end = time.monotonic() + 60
            while "/v1" not in new.log:  # the banner, when it takes requests
                assert time.monotonic() < end and new.process.poll() is None, new.log
                time.sleep(0.05)
            assert old.stop() == 0
            old = new
        time.sleep(0.5)
        done.set()
        for thread in threads:
            thread.join()
        assert count > 20 and not failed, (count, failed)
        assert old.stop() == 0


def test_json_logs_and_no_word_of_a_prompt() -> None:
    secret = "xylophonequartz"
    with Program(*FLOAT32, "--log-format", "json", "--api-server-count", "2") as program:
        program.wait_status(200)
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("/v1/completions", {"prompt": secret, "max_tokens": 3, "stream": True}),
            ("/v1/completions", {"prompt": secret, "max_tokens": -3}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "max_tokens": 2}),
        ]
        asyncio.run(ask_all(program.url, bodies))
        assert program.stop() == 0
        assert secret not in program.log
        lines = [json.loads(line) for line in program.log.splitlines() if line.startswith("{")]
        ends = [line for line in lines if line["logger"] == "quire.request"]
        assert sorted(line["reason"] for line in ends) == ["length", "length"]
        names = {"request_id", "prompt_tokens", "output_tokens", "queue_ms", "prefill_ms", "decode_ms"}
        assert all(names <= set(line) for line in ends)


def test_one_listener_and_a_private_folder() -> None:
    """S6: one socket on a network, the API's; the rest are Unix sockets in a folder that only we may enter."""
    with Program(*FLOAT32) as program:
        program.wait_status(200)
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        body = {"prompt": "x", "max_tokens": 3, "structured_outputs": {"json": schema}}
        assert httpx.post(program.url + "/v1/completions", json=body, timeout=30).status_code == 200
        sockets = [
            (process.name(), c.laddr.port)
            for process in program.family
            for c in process.net_connections("inet")
            if c.status == psutil.CONN_LISTEN or c.type == socket.SOCK_DGRAM
        ]
        assert [port for _, port in sockets] == [program.port], sockets
        [folder] = [path for path in program.temporary.iterdir() if path.is_dir()]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert str(program.process.pid) not in folder.name and str(program.port) not in folder.name
        for path in folder.iterdir():  # noise on them changes nothing
            if path.is_socket():
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(path))
                    sock.sendall(b"\x80\x04cos\nsystem\n(S'true'\ntR." * 10)
        assert httpx.post(program.url + "/v1/completions", json=body, timeout=30).status_code == 200
        assert program.stop() == 0


ALONE = """
import asyncio, ctypes, fcntl, re, socket, struct, sys, time
sys.path.insert(0, sys.argv[1])
import httpx
from program import FLOAT32, Program

# a new network: its loopback is down, and without a route nobody's attempt to get out would be counted
name, anywhere = ctypes.create_string_buffer(b"lo"), struct.pack("H14s", socket.AF_INET, b"")
route = (0, anywhere, anywhere, anywhere, 1, 0, 0, 0, 0, ctypes.addressof(name), 0, 0, 0)
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))
    fcntl.ioctl(sock, 0x890B, struct.pack("@L16s16s16sHhLPhPLLH", *route))

def opened():
    "Connections and datagrams that were sent out by anybody, so far."
    lines = [line.split() for line in open("/proc/net/snmp")]
    counts = {}
    for names, values in zip(lines[::2], lines[1::2]):
        counts |= {names[0] + name: int(value) for name, value in zip(names[1:], values[1:])}
    return counts["Tcp:ActiveOpens"], counts["Udp:OutDatagrams"]

with socket.socket() as sock:  # that they are counted
    sock.settimeout(0.1)
    try:
        sock.connect(("192.0.2.1", 443))
    except OSError:
        pass
assert opened() == (1, 0), opened()
with Program(*FLOAT32, "--api-server-count", "2") as program:
    own = 1
    while program.status()[0] != 200:
        own += 1
        time.sleep(0.3)
    for _ in range(3):
        assert httpx.post(program.url + "/v1/completions", json={"prompt": "x", "max_tokens": 3}).status_code == 200
    assert program.stop() == 0, program.log
connections, datagrams = opened()
print(connections - 1 - own - 3, datagrams)
"""


def test_no_connection_goes_out_in_a_network_of_its_own() -> None:
    """S6: without any network a local model is served, and nobody even tries to reach one."""
    allowed = subprocess.run(["unshare", "-rn", "true"], capture_output=True)
    if allowed.returncode != 0:
        pytest.skip("no network namespaces here")
    command = ["unshare", "-rn", sys.executable, "-W", "ignore", "-c", ALONE, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0"], "connections and datagrams that are not the test's own"
