"""More requests than a server can serve: what those get who are let in, how soon the others are told, what it costs.

    python benchmarks/overload.py                    the demo model, on this machine's CPU
    python benchmarks/overload.py --requests 20000   the long form
    python benchmarks/overload.py --fair             two keys: what a heavy user does to a light one
    python benchmarks/overload.py --model FOLDER     a larger one: refusals take less of the cores it computes on

Finds the peak first: closed loops of several sizes, completions per second. Then requests arrive at random (Poisson) at
a multiple of it. Every answer must be 200 or 429 with retry-after; figures are printed as one JSON line each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

PROMPT = "Once upon a time there was a small town by the sea, and in it lived"
SHORTEST, LONGEST = 16, 32
"""New tokens of a request: of many lengths, or all would run in step, with one prefill for eight of them."""
ROWS = 8
QUEUE = 16
QUEUE_SECONDS = 5.0


class Server:
    """A running `quire serve` with a short line; a context."""

    def __init__(self, model: str, *flags: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "quire", "serve", model, "--port", str(self.port)]
        command += ["--max-num-seqs", str(ROWS)]
        command += ["--max-num-queued-reqs", str(QUEUE), "--max-queue-time", str(QUEUE_SECONDS), *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))

    def __enter__(self) -> Server:
        for _ in range(1200):
            try:
                urllib.request.urlopen(self.url + "/health", timeout=2).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the server did not come up")

    def __exit__(self, *args: object) -> None:
        self.process.terminate()
        self.process.wait(40)

    def memory_mib(self) -> float:
        """Of the process that answers."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024


class Answer:
    """What one request got.

    Attributes:
        status: of HTTP, or 0 if there was no answer.
        first: seconds to the first byte of content; of a refusal, to its end.
        ended: monotonic seconds, where the answer came to its end.
        polite: whether a refusal says when to come again.
    """

    def __init__(self) -> None:
        self.status, self.first, self.ended, self.polite = 0, 0.0, 0.0, True


async def ask(port: int, key: str = "", max_tokens: int | None = None) -> Answer:
    """One streamed request on a connection of its own, read with as little work as can be."""
    answer, started = Answer(), time.perf_counter()
    max_tokens = max_tokens or random.randint(SHORTEST, LONGEST)
    words = {"prompt": f"{PROMPT} {random.random()}", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    body = json.dumps(words).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + b"\r\n" + body)
        top = await reader.readuntil(b"\r\n\r\n")
        answer.status = int(top[9:12])
        answer.polite = answer.status != 429 or b"retry-after:" in top.lower()
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                answer.first = answer.first or time.perf_counter() - started
            if line == b"data: [DONE]\n":
                answer.ended = time.monotonic()
        answer.first = answer.first or time.perf_counter() - started
    finally:
        writer.close()
    return answer


async def closed_loop(port: int, clients: int, seconds: float) -> float:
    """Completions per second of so many clients that ask again as soon as they are answered."""
    end, done = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            answer = await ask(port)
            done += answer.status == 200 and time.monotonic() < end

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


async def poisson(rate: float, count: int, one: Callable[[], Awaitable[Answer]]) -> tuple[list[Answer], float, float]:
    """Requests at random moments, whatever becomes of those before; when they began to come, and when they ceased."""
    rng, tasks, started = random.Random(1), list[asyncio.Task[Answer]](), time.monotonic()
    at = started
    for _ in range(count):
        at += rng.expovariate(rate)
        await asyncio.sleep(max(at - time.monotonic(), 0))
        tasks.append(asyncio.ensure_future(one()))
    ceased = time.monotonic()
    return list(await asyncio.gather(*tasks)), started, ceased


def quantile(values: list[float], q: float) -> float:
    """Of the sorted values; 0 if there are none."""
    ordered = sorted(values)
    return round(ordered[min(int(q * len(ordered)), len(ordered) - 1)], 4) if ordered else 0.0


def overload(model: str, requests: int, factor: float) -> dict[str, Any]:
    """R1: four times what fits."""
    with Server(model) as server:
        asyncio.run(closed_loop(server.port, ROWS, 4))
        peak = max(asyncio.run(closed_loop(server.port, clients, 8)) for clients in (ROWS, ROWS + QUEUE // 2))
        before = server.memory_mib()
        answers, started, ceased = asyncio.run(poisson(factor * peak, requests, lambda: ask(server.port)))
        after = server.memory_mib()
    seconds = ceased - started
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer.first for answer in answers if answer.status == 429]
    return {
        "peak_per_s": round(peak, 1),
        "offered_per_s": round(requests / seconds, 1),
        "codes": dict(Counter(answer.status for answer in answers)),
        "all_polite": all(answer.polite for answer in answers),
        "goodput_of_peak": round(sum(0 < answer.ended < ceased for answer in served) / seconds / peak, 3),
        "refused_p50_s": quantile(refused, 0.5),
        "refused_p99_s": quantile(refused, 0.99),
        "ttft_p50_s": quantile([answer.first for answer in served], 0.5),
        "ttft_p99_s": quantile([answer.first for answer in served], 0.99),
        "queue_bound_s": QUEUE_SECONDS,
        "memory_grew_mib": round(after - before, 1),
    }


async def light_user(port: int, key: str, count: int) -> list[float]:
    """Seconds to the first token of somebody who asks now and then."""
    waits = []
    for _ in range(count):
        answer = await ask(port, key, 8)
        while answer.status == 429:
            await asyncio.sleep(1)
            answer = await ask(port, key, 8)
        waits.append(answer.first)
        await asyncio.sleep(0.15)
    return waits


async def beside(port: int, key: str, heavy: str, count: int, clients: int) -> list[float]:
    """The same beside so many clients of another key, or of the same."""

    async def keep_asking() -> None:
        while True:
            answer = await ask(port, heavy, 100)
            if answer.status == 429:
                await asyncio.sleep(0.1)

    tasks = [asyncio.ensure_future(keep_asking()) for _ in range(clients)]
    await asyncio.sleep(2)
    try:
        return await light_user(port, key, count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fair(model: str, count: int) -> dict[str, Any]:
    """A light user alone at the load that is his share, beside a heavy one, and as one key with him."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write("- {name: light, key: l}\n- {name: heavy, key: h}\n")
        file.flush()
        with Server(model, "--api-key-file", file.name) as server:
            alone = asyncio.run(light_user(server.port, "l", count))
            full = asyncio.run(beside(server.port, "l", "l", count, ROWS // 2))
            heavy = asyncio.run(beside(server.port, "l", "h", count, 3 * ROWS))
            as_one = asyncio.run(beside(server.port, "h", "h", count // 5, 2 * ROWS))
    return {
        "ttft_p50_p99_s alone": [quantile(alone, 0.5), quantile(alone, 0.99)],
        "beside half the rows of his own": [quantile(full, 0.5), quantile(full, 0.99)],
        "beside a heavy user": [quantile(heavy, 0.5), quantile(heavy, 0.99)],
        "with the heavy user's key": [quantile(as_one, 0.5), quantile(as_one, 0.99)],
        "p99 to his own full share": round(quantile(heavy, 0.99) / quantile(full, 0.99), 2),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument("--fair", action="store_true")
    args = parser.parse_args()
    found = fair(args.model, 60) if args.fair else overload(args.model, args.requests, args.factor)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
