"""`quire serve` with the fake engine in place of the real one: run as a program by the tests of its life."""

import asyncio
import sys
from typing import Any

from fake_engine import READY, FakeClient

import quire.launch
from quire.cli import main
from quire.errors import StartupError
from quire.messages import Progress


async def start_engine(config: Any, on_progress: Any = None, *, num_clients: int = 1) -> FakeClient:
    kind = sys.argv[1]
    client = FakeClient(step_s=0.05, endless=True)
    client.ready = None
    ended = asyncio.Event()

    async def wait_ready() -> Any:
        await asyncio.sleep(0.3)
        on_progress(Progress("weights", 1 << 30, 2 << 30))
        if kind == "no-start":
            raise StartupError("No room for the KV cache: lower --max-model-len to 77.")
        client.ready = READY
        if kind == "dies":
            asyncio.get_running_loop().call_later(0.7, lambda: (client.die(), ended.set()))
        return READY

    async def wait_ended() -> int:
        await ended.wait()
        return 9

    async def wait_dead() -> None:
        await ended.wait()

    async def close(seconds: float = 5) -> None:
        print("engine closed", file=sys.stderr)

    client.kill = lambda: None  # type: ignore[attr-defined]
    client.wait_dead = wait_dead  # type: ignore[attr-defined]
    client.wait_ready, client.wait_ended, client.close = wait_ready, wait_ended, close  # type: ignore[attr-defined]
    return client


if __name__ == "__main__":
    quire.launch.start_engine = start_engine  # type: ignore[assignment]
    main(sys.argv[2:])
