from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "frontend"))

from quire.bench.ceiling import stub
from quire.bench.exchange import Outcome


@pytest.fixture(scope="session")
def stub_port() -> Iterator[int]:
    """A stub server in another process."""
    with stub(step_ms=1.0) as port:
        yield port


@pytest.fixture(scope="session")
def grumpy_port() -> Iterator[int]:
    """One that refuses each third request."""
    with stub(step_ms=1.0, fail_every=3) as port:
        yield port


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    """Makes a request's outcome from its times."""

    def make(index: int, start: float, times: list[float], output_tokens: int | None = None, **more: object) -> Outcome:
        fields = {"end": times[-1] if times else start, "status": 200, "error": "", "prompt_tokens": 0, **more}
        tokens = len(times) if output_tokens is None else output_tokens
        return Outcome(index=index, start=start, output_tokens=tokens, chunks=array("d", times).tobytes(), **fields)

    return make
