"""A mix of what clients do, well and badly, and what it leaves behind in memory, descriptors and threads."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from program import Program

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}}, "required": ["name"]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
BAD: tuple[dict[str, Any], ...] = (
    {"temperature": -1},
    {"max_tokens": 10**12},
    {"prompt": [10**9]},
    {"stop": ["a"] * 100},
    {"structured_outputs": {"json": {"type": "bogus"}}},
)


@dataclass
class Seen:
    """What came of the requests.

    Attributes:
        statuses: how many of each; "left" are those that the client gave up.
        seconds: (when it ended, how long it took) of those that were answered.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.statuses.values())


def make_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Chat, tools, schemas, several choices, log-probabilities, long prompts, errors."""
    text = f"Tell {rng.randrange(1000)} " + "more and " * rng.randrange(12)
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 10), "stream": rng.random() < 0.5, "seed": rng.randrange(99)}
    body["n"] = 3 if rng.random() < 0.1 else 1
    kind = rng.random()
    if kind < 0.4:
        body["messages"] = [{"role": "user", "content": text}]
        if kind < 0.1:
            body["tools"] = TOOLS
        return "/v1/chat/completions", body
    body["prompt"] = text
    if kind < 0.45:
        body |= {"structured_outputs": {"json": SCHEMA}, "max_tokens": 24}
    elif kind < 0.55:
        body["logprobs"] = 3
    elif kind < 0.6:
        body |= rng.choice(BAD)
    elif kind < 0.62:
        body["prompt"] = "long " * 300
    return "/v1/completions", body


async def run_load(
    url: str,
    *,
    requests: int | None = None,
    seconds: float = 1e9,
    leave: float = 0.1,
    at_once: int = 24,
    seed: int = 0,
    on_tick: Any = None,
) -> Seen:
    """So many requests, or for so long, so many at a time; a share of the clients goes away at some moment."""
    seen, rng, end = Seen(), random.Random(seed), time.monotonic() + seconds
    left = requests if requests is not None else 1 << 60

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0 and time.monotonic() < end:
            left -= 1
            path, body = make_request(rng)
            patience = rng.uniform(0, 0.2) if rng.random() < leave else None
            begun = time.monotonic()
            try:
                async with asyncio.timeout(patience), http.stream("POST", path, json=body) as answer:
                    await answer.aread()
                    seen.statuses[str(answer.status_code)] += 1
                    if answer.status_code == 200:
                        seen.seconds.append((time.monotonic(), time.monotonic() - begun))
            except TimeoutError:
                seen.statuses["left"] += 1
            except httpx.TransportError as error:
                seen.statuses[repr(error)[:80]] += 1

    async def watch() -> None:
        while on_tick is not None:
            on_tick(seen)
            await asyncio.sleep(2.0)

    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        ticking = asyncio.create_task(watch())
        await asyncio.gather(*(client(http) for _ in range(at_once)))
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
    return seen


@dataclass(frozen=True)
class Holding:
    """What the processes of a server hold.

    Attributes:
        kib: RssAnon + VmSwap: what a leak shows in, even where it is swapped out.
    """

    kib: int
    fds: int
    threads: int

    @staticmethod
    def of(program: Program) -> Holding:
        kib = fds = threads = 0
        for process in program.family:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines if ":" in line)
            kib += sum(int(values.get(name, "0 kB").split()[0]) for name in ("RssAnon", "VmSwap"))
            threads += int(values["Threads"])
            fds += process.num_fds()
        return Holding(kib, fds, threads)


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line through the points (least squares)."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    down = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / down if down else 0.0


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below this share of them."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
