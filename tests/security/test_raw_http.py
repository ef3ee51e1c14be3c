"""Bytes that are hardly HTTP, from clients that are hardly clients: each gets an answer in our form or is cut off.

500 cases for every change, 20,000 with `-m soak`: the same code, another number.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parents[1] / "frontend")]

from fake_engine import FakeClient, Running, running  # noqa: E402

from quire.server.admission import Bounds  # noqa: E402
from quire.server.app import ROUTES  # noqa: E402

BODY = b'{"prompt":"hi","max_tokens":3}'
STREAM = b'{"prompt":"hi","max_tokens":3,"stream":true}'
PATHS = [route.path.replace("{name}", "fake").encode() for route in ROUTES]
WORKERS = 8
ALLOWED = {200, 400, 401, 404, 405, 408, 413, 415, 429, 431, 503}

Pieces = list[bytes]


def request(
    rng: random.Random, body: bytes = BODY, path: bytes = b"/v1/completions", *headers: bytes, method: bytes = b"POST"
) -> bytes:
    fields = [b"host: x", b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    rng.shuffle(fields)
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, path, b"\r\n".join(fields), body)


def good(rng: random.Random) -> bytes:
    return request(rng, rng.choice([BODY, STREAM]))


def split(rng: random.Random) -> Pieces:
    """A good request in as many pieces as it likes."""
    data, pieces = good(rng), []
    while data:
        size = rng.choice([1, 1, 2, 5, 40, 1000])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def pipelined(rng: random.Random) -> Pieces:
    return [b"".join(good(rng) for _ in range(rng.randint(2, 12)))]


def chunked(rng: random.Random) -> Pieces:
    """Chunks, right or wrong."""
    sizes = [
        b"%x" % rng.randint(0, 60),
        b"-1",
        b"zz",
        b"ffffffffffffffff",
        b"0x5",
        b"",
        b" 5",
        b"5;ext=" + b"a" * 50,
        b"%x" % len(BODY),
    ]
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    head += rng.choice([b"", b"", b"content-length: 5\r\n", b"transfer-encoding: gzip\r\n"]) + b"\r\n"
    parts = [head]
    for _ in range(rng.randint(1, 5)):
        parts.append(rng.choice(sizes) + rng.choice([b"\r\n", b"\n", b""]) + BODY + rng.choice([b"\r\n", b""]))
    return [*parts, b"0\r\n\r\n"]


def large_header(rng: random.Random) -> Pieces:
    kind = rng.randrange(4)
    if kind == 0:
        return [request(rng, BODY, b"/v1/completions", b"x-large: " + b"a" * rng.choice([17_000, 70_000, 300_000]))]
    if kind == 1:
        return [request(rng, BODY, b"/v1/completions", *(b"x-%d: 1" % i for i in range(rng.choice([101, 3000]))))]
    if kind == 2:
        return [request(rng, BODY, b"/" + b"a" * 70_000)]
    return [b"GET /health HTTP/1.1\r\n", *[b"x" * 65_536] * rng.randint(2, 20)]


def large_body(rng: random.Random) -> Pieces:
    length = rng.choice([5_000_000, 2**31, 2**63, 2**64, 10**30])
    return [b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length, b"[" * 200_000]


def mangled(rng: random.Random) -> Pieces:
    """A good request with a few bytes changed, left out or doubled."""
    data = bytearray(good(rng))
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        change = rng.randrange(3)
        if change == 0:
            data[at] = rng.randrange(256)
        elif change == 1:
            del data[at]
        else:
            data[at:at] = data[at : at + rng.randint(1, 30)]
    return [bytes(data)]


def noise(rng: random.Random) -> Pieces:
    return [rng.randbytes(rng.choice([1, 10, 1000, 100_000]))]


def odd_line(rng: random.Random) -> Pieces:
    line = rng.choice(
        [
            b"GET /health HTTP/1.0",
            b"GET /health",
            b"GET  /health  HTTP/1.1",
            b"get /health HTTP/1.1",
            b"GET /health HTTP/2.0",
            b"PRI * HTTP/2.0",
            b"CONNECT x:1 HTTP/1.1",
            b"GET http://x/health HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"GET //health HTTP/1.1",
            b"GET /%00 HTTP/1.1",
            b"GET /%ff%fe HTTP/1.1",
            b"GET /../../etc/passwd HTTP/1.1",
            b"\r\n\r\nGET /health HTTP/1.1",
            b"GET /health\x00 HTTP/1.1",
            b"GET /\xc3\xa4 HTTP/1.1",
            b"TRACE / HTTP/1.1",
        ]
    )
    headers = rng.choice(
        [
            b"",
            b"host: x\r\n",
            b"host: a\r\nhost: b\r\n",
            b"upgrade: websocket\r\nconnection: upgrade\r\n",
            b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: x\r\n",
            b" folded: x\r\n",
            b": empty\r\n",
            b"expect: 100-continue\r\n",
            b"content-length: +5\r\n",
            b"content-length: 5, 5\r\n",
            b"a\x00b: c\r\n",
            b"connection: close\r\n",
            b"range: bytes=0-1\r\n",
            b"authorization: \xff\xfe\r\n",
            b"x-request-id: a\x01b\r\n",
        ]
    )
    return [line + b"\r\n" + headers + b"\r\n"]


def on_a_route(rng: random.Random) -> Pieces:
    method = rng.choice([b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
    body = rng.choice([b"", b"{}", b"[", b"null", BODY, b"\xff", b'{"prompt":' + b"[" * 5000, b'"' * 1000])
    return [request(rng, body, rng.choice(PATHS), method=method)]


CASES: tuple[Callable[[random.Random], Pieces], ...] = (
    split, pipelined, chunked, large_header, large_body, mangled, noise, odd_line, on_a_route,
)  # fmt: skip


def play(port: int, seed: int) -> tuple[str, bytes]:
    """One case from its seed: its name, and what came back."""
    rng = random.Random(seed)
    case = CASES[seed % len(CASES)]
    pieces, manner = case(rng), rng.choice(["wait", "wait", "half-close", "close", "reset"])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) < 30 and rng.random() < 0.3:
                    time.sleep(0.001)
            if manner == "half-close":
                sock.shutdown(socket.SHUT_WR)
            elif manner == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if manner in ("wait", "half-close"):
                sock.settimeout(5 if manner == "half-close" else 0.1)
                while piece := sock.recv(65_536):
                    answer += piece
                    sock.settimeout(5 if manner == "half-close" else 0.05)
        except TimeoutError:
            if manner == "half-close":
                return case.__name__, b"HANGS " + answer[:200]
        except (ConnectionError, BrokenPipeError):
            pass
    return case.__name__, answer


def complaint(answer: bytes) -> str | None:
    """What is wrong with what came back; nothing at all is right, too."""
    if not answer:
        return None
    head, found, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not found or words[0] != b"HTTP/1.1" or not words[1].isdigit():
        return f"no HTTP: {answer[:100]!r}"
    status = int(words[1])
    if status == 100:
        return complaint(body)
    if status not in ALLOWED:
        return f"{status}: {answer[:300]!r}"
    is_error = status >= 400 and b"transfer-encoding" not in head.lower()
    if is_error and body and b"content-length: 0" not in head.lower():
        text = body[: body.find(b"HTTP/1.1")] if b"HTTP/1.1" in body else body
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError):
            return f"not our form: {body[:200]!r}"
        if set(error) != {"message", "type", "param", "code"} or b"Traceback" in body or b"site-packages" in body:
            return f"not our form: {error}"
    return None


def fuzz(server: Running, count: int, first: int = 0) -> Counter[str]:
    """Play that many cases from several threads."""
    port = int(server.url.rsplit(":", 1)[1])
    seeds, wrong, kinds, lock = iter(range(first, first + count)), list[str](), Counter[str](), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                seed = next(seeds, None)
            if seed is None:
                return
            name, answer = play(port, seed)
            found = complaint(answer)
            with lock:
                kinds[f"{name} {answer[9:12].decode('latin-1')}"] += 1
                if found:
                    wrong.append(f"seed {seed} ({name}): {found}")

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:10]
    return kinds


def after(server: Running) -> None:
    """Nothing is left of them, and the next client is served."""
    end = time.monotonic() + 5
    while time.monotonic() < end and (server.server.server_state.connections or server.client.num_in_flight):
        time.sleep(0.02)
    assert not server.server.server_state.connections and not server.client.num_in_flight
    assert server.admission.counts == (0, 0)
    _, answer = play(int(server.url.rsplit(":", 1)[1]), 0)
    assert complaint(answer) is None


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeClient(), bounds=Bounds(1000, 10**6)) as server:
        yield server


def memory() -> float:
    return psutil.Process().memory_info().rss / (1 << 20)


def test_500_cases(server: Running) -> None:
    fuzz(server, 50, first=10**6)  # warm
    before = memory()
    kinds = fuzz(server, 500)
    after(server)
    assert memory() - before < 50
    names = {kind.split()[0] for kind in kinds}
    assert names == {case.__name__ for case in CASES}
    assert sum(count for kind, count in kinds.items() if kind.endswith(" 200")) > 20, "some must get through"


@pytest.mark.soak
def test_20000_cases(server: Running) -> None:
    fuzz(server, 500, first=10**6)
    before = memory()
    for part in range(10):
        fuzz(server, 2000, first=part * 2000)
    after(server)
    assert memory() - before < 50


def gibberish(server: Running, count: int) -> None:
    """Methods, paths, models and keys that nobody has."""
    port, rng = int(server.url.rsplit(":", 1)[1]), random.Random(1)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        for _ in range(count):
            word = rng.randbytes(6).hex().encode()
            method = rng.choice([b"GET", b"POST", b"PUT", b"DELETE", b"SEARCH", b"PROPFIND"])
            path = rng.choice([b"/" + word, b"/v1/models/" + word, b"/v1/completions?" + word, b"/v1/completions"])
            body = b'{"model":"%b","prompt":"x"}' % word
            sock.sendall(request(rng, body, path, b"x-api-key: " + word, b"x-request-id: " + word, method=method))
            assert sock.recv(65_536).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.soak)])
def test_metrics_keep_their_size(server: Running, count: int) -> None:
    gibberish(server, 10)
    before = server.metrics.render()
    gibberish(server, count)
    after = server.metrics.render()
    assert abs(len(after) - len(before)) < 1000 and after.count(b"\n") == before.count(b"\n")


def test_slow_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, for ever: headers, or a body. The limit is 30 s; here it is half a second."""
    monkeypatch.setattr("quire.server.limits.READ_SECONDS", 0.5)
    with running() as server:
        port = int(server.url.rsplit(":", 1)[1])
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n"
        chunks = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        for start, drip in (
            (b"", head * 5),
            (head + b"\r\n", b"{" * 40),
            (chunks, b"1\r\n{\r\n" * 20),
            (b"GET /", b"a" * 99),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(start)
                sock.settimeout(0.05)
                started, answer = time.monotonic(), b""
                for byte in drip:
                    try:
                        sock.sendall(bytes([byte]))
                        answer += sock.recv(65_536)
                        break
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        break
                assert time.monotonic() - started < 1.5, start
                assert answer.startswith(b"HTTP/1.1 408 "), (start, answer[:100])
        after(server)


def test_many_idle_connections_hold_up_nobody(server: Running) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(300)]
    for sock in idle[::2]:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    rng = random.Random(1)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(request(rng))
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 ")
    for sock in idle:
        sock.close()
    after(server)
