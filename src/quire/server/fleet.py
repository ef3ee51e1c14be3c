"""The further API processes, as the main one sees them: start, ready, go, drain. Owns those processes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from quire.config import EngineConfig, ServerConfig
from quire.errors import StartupError
from quire.server.member import Membership

log = logging.getLogger("quire.server")


class Fleet:
    """All API processes but this one; there may be none.

    Args:
        engine_config, server_config: their settings.
        folder: private folder of the engine's sockets.
        socks: one bound socket each; closed here as soon as they have it.
    """

    def __init__(
        self, engine_config: EngineConfig, server_config: ServerConfig, folder: Path, socks: Sequence[socket.socket]
    ) -> None:
        self._engine_config = engine_config
        self._server_config = server_config
        self._folder = folder
        self._socks = list(socks)
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        """Start all of them and wait until they are ready.

        Raises:
            StartupError: one has ended instead.
        """
        for index, sock in enumerate(self._socks, 1):
            self._processes.append(await self._start(index, sock))
            sock.close()
        for process in self._processes:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                code = await process.wait()
                raise StartupError(f"An API process ended with code {code} before it was ready.")

    async def _start(self, index: int, sock: socket.socket) -> asyncio.subprocess.Process:
        root = str(Path(__file__).parents[2])
        python_path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quire.server.member"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[sock.fileno()],
            env={**os.environ, "PYTHONPATH": python_path},
            start_new_session=True,  # Ctrl-C reaches the main process only, which decides what to do
        )
        orders = Membership(
            index=index,
            num_processes=len(self._socks) + 1,
            folder=str(self._folder),
            socket_fd=sock.fileno(),
            main_pid=os.getpid(),
            log_level=logging.getLevelName(logging.getLogger("quire").level),
            engine=self._engine_config,
            server=self._server_config,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(orders) + b"\n")
        return process

    def tell(self, order: str) -> None:
        """Give an order to all that still live."""
        for process in self._processes:
            if process.returncode is None and process.stdin is not None:
                process.stdin.write(order.encode() + b"\n")

    async def wait_any_ended(self) -> int:
        """Wait until one of them is gone; its exit code. For ever, if there are none."""
        if not self._processes:
            await asyncio.Event().wait()
        waits = [asyncio.create_task(process.wait()) for process in self._processes]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()

    async def wait_all_ended(self) -> None:
        """Wait until all are gone."""
        await asyncio.gather(*(process.wait() for process in self._processes))

    def kill(self) -> None:
        """End those that still live, now."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
        for sock in self._socks:
            sock.close()
