"""A further API process: its own connections and its own way to the engine, under orders of the main process.

It is told what to do in lines on its standard input, and dies with the pipe; it says `ready` on its standard output.

    settings ─► load ─► "ready" ─► "go": take connections ─► "drain": finish, exit 0
                                         "keys": read them again   └─ "dead REASON": the engine has ended; a new one
                                                                      says itself that it is ready
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from pathlib import Path

import msgspec
import uvloop

from quire.config import EngineConfig, ServerConfig
from quire.launch import join_engine
from quire.lifeline import die_with_parent
from quire.observability import logs
from quire.observability.cells import SharedCells
from quire.observability.metrics import Metrics
from quire.server.serving import ApiServer, admission_cells

ENGINE_ENDED_SECONDS = 2.0


class Membership(msgspec.Struct):
    """What a member is told at its start."""

    index: int
    num_processes: int
    folder: str
    socket_fd: int
    main_pid: int
    log_level: str
    engine: EngineConfig
    server: ServerConfig


CELLS_FILE = "metrics"
"""In the private folder: the numbers of all processes."""


class Member:
    """Owns one run of this process."""

    def __init__(self, orders: Membership) -> None:
        self._orders = orders
        self._go = asyncio.Event()
        self._over: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until told to end."""
        orders, folder = self._orders, Path(self._orders.folder)
        loop = asyncio.get_running_loop()
        self._client = await join_engine(folder, orders.index, orders.num_processes)
        names = orders.server.served_model_name or (orders.engine.model.model,)
        cells = SharedCells(folder / CELLS_FILE, orders.index, orders.num_processes)
        metrics = Metrics(names[0], None, cells, orders.main_pid)
        sock = socket.socket(fileno=orders.socket_fd)
        waiting = admission_cells(folder, orders.index, orders.num_processes)
        self._api = api = ApiServer(orders.engine, orders.server, self._client, metrics, sock, orders.index, waiting)
        threading.Thread(target=_read_orders, args=(loop, self._obey), name="quire-orders", daemon=True).start()
        service = await api.load()
        print("ready", flush=True)
        await self._go.wait()
        api.begin(service)
        api.start()
        await api.stop(await self._over)
        await self._client.close()

    def _obey(self, line: str) -> None:
        order, _, value = line.partition(" ")
        if order == "go":
            self._go.set()
        elif order == "drain" and not self._over.done():
            self._over.set_result(float(value))
        elif order == "keys":
            self._api.reload_keys()
        elif order == "dead":
            self._client.engine_ended(value)


def _read_orders(loop: asyncio.AbstractEventLoop, obey: object) -> None:
    """In a thread: one order per line; the end of the pipe is the end of the main process, and of this one."""
    data = b""
    while piece := os.read(0, 4096):
        *lines, data = (data + piece).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(obey, line.decode())  # type: ignore[arg-type]
    os._exit(3)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 1)):
            os._exit(3)  # the main process is gone
        line += piece
    return line


def main() -> None:
    """Entry point."""
    orders = msgspec.json.decode(_read_line(), type=Membership)
    logs.set_up(orders.engine.operation.log_format, level=orders.log_level)
    die_with_parent()

    async def run() -> None:
        await Member(orders).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    sys.stdout.flush()
    os._exit(0)  # the thread that reads orders would wait for one more


if __name__ == "__main__":
    main()
