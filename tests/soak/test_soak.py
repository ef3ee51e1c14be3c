"""Load for a while: nothing is left of clients that go away, and nothing grows.

The same code runs for seconds with every change, and for as long as is asked for with `pytest -m soak`:
QUIRE_SOAK_MINUTES (default 60) and QUIRE_SOAK_OUT, a file for the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from load import Holding, Seen, percentile, run_load, slope
from program import Program

MINUTES = float(os.environ.get("QUIRE_SOAK_MINUTES", "60"))
SOAK = [pytest.mark.soak, pytest.mark.timeout(MINUTES * 60 + 900)]


@pytest.mark.parametrize("size", [pytest.param(500, id="500"), pytest.param(10_000, id="10000", marks=SOAK)])
def test_half_of_the_clients_go_away(size: int) -> None:
    """R2: streaming or not, queued, in the middle of the prompt or of the answer, one choice or three."""
    with Program("--max-num-seqs", "16", "--api-server-count", "2") as program:
        program.wait_status(200)
        asyncio.run(run_load(program.url, requests=200, leave=0.5))  # what is made once is made
        program.wait_idle()
        before = Holding.of(program)
        seen = asyncio.run(run_load(program.url, requests=size, leave=0.5, at_once=64, seed=1))
        assert seen.statuses["left"] > size / 10 and set(seen.statuses) <= {"200", "400", "left"}, seen.statuses
        program.wait_idle(2.0)
        after = Holding.of(program)
        assert after.fds <= before.fds + 2 and after.threads <= before.threads + 2, (before, after)
        assert program.stop() == 0


@pytest.mark.parametrize(
    "minutes", [pytest.param(0.25, id="seconds"), pytest.param(MINUTES, id=f"{MINUTES:g} minutes", marks=SOAK)]
)
def test_nothing_grows(minutes: float) -> None:
    """R9: memory by at most 0.2 MiB in 1,000 requests after warm-up, descriptors and threads not at all; no slower."""
    with Program("--max-num-seqs", "32", "--num-gpu-blocks-override", "1025") as program:
        program.wait_status(200)
        asyncio.run(run_load(program.url, seconds=min(120, minutes * 20)))  # pools, caches and heaps fill
        program.wait_idle()
        first = Holding.of(program)
        points: list[tuple[float, float]] = []

        def note(seen: Seen) -> None:
            points.append((seen.count, Holding.of(program).kib))

        seen = asyncio.run(run_load(program.url, seconds=minutes * 60, seed=1, on_tick=note))
        program.wait_idle()
        last = Holding.of(program)
        assert set(seen.statuses) <= {"200", "400", "left"}, seen.statuses
        took = [seconds for _, seconds in sorted(seen.seconds)]
        tenth = max(1, len(took) // 10)
        figures = {
            "requests": seen.count,
            "statuses": dict(seen.statuses),
            "MiB per 1,000 requests": slope(points) * 1000 / 1024,
            "MiB": (first.kib / 1024, last.kib / 1024),
            "fds": (first.fds, last.fds),
            "threads": (first.threads, last.threads),
            "p99 s, first and last tenth": (percentile(took[:tenth], 0.99), percentile(took[-tenth:], 0.99)),
        }
        print(json.dumps(figures, indent=2))
        if out := os.environ.get("QUIRE_SOAK_OUT"):
            Path(out).write_text(json.dumps({**figures, "points": points}))
        assert last.fds <= first.fds + 2 and last.threads <= first.threads + 2, figures
        if minutes >= 5:  # in less time a heap that settles looks like a leak
            assert figures["MiB per 1,000 requests"] <= 0.2, figures
            assert percentile(took[-tenth:], 0.99) <= 1.2 * percentile(took[:tenth], 0.99) + 0.05, figures
        assert program.stop() == 0
