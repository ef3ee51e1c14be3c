"""From settings to a serving process and back: bind, start the engine, serve, drain, exit code.

bind ─► config.json ─► engine starts ─► web server, 503 ─► tokenizer ─► ready, 200 ─► signal: drain ─► exit 0
                                                                                └─ engine ends: errors, a new one
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from quire.config import EngineConfig, ServerConfig
from quire.errors import EngineDeadError
from quire.server.banner import LoadingLine, banner
from quire.server.keys import keys_of
from quire.server.listen import listen_together, url_of
from quire.sources import model_facts

if TYPE_CHECKING:
    from quire.frontend.client import Client
    from quire.observability.metrics import Metrics
    from quire.server.fleet import Fleet
    from quire.server.serving import ApiServer

log = logging.getLogger("quire.server")
CLOSE_SECONDS = 5.0
"""What the engine gets to end by itself when nothing runs any more."""
FORCED_SECONDS = 0.5
"""The same after a second signal."""
BROKEN_SECONDS = 2.0
"""What clients get to read their errors when the engine or an API process has ended by itself."""


def run(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    """Serve until a signal or the engine's end; returns the exit code.

    Raises:
        ConfigError: a setting cannot work.
        StartupError: the port is taken, or the engine did not come up.
        EngineDeadError: the engine, or an API process, has ended and is not started again.
    """
    started = time.monotonic()
    model = engine_config.model
    keys_of(server_config)
    if any(
        (server_config.ssl_certfile, server_config.ssl_keyfile, server_config.ssl_ca_certs, server_config.ssl_cert_reqs)
    ):
        from quire.server.web import check_tls

        check_tls(server_config)
    shares = server_config.reuse_port
    count = server_config.api_server_count
    socks = listen_together(server_config.host, server_config.port, count, with_others=shares)
    try:
        metrics_port = server_config.metrics_port
        metrics_sock = None
        if metrics_port is not None:
            [metrics_sock] = listen_together(server_config.host, metrics_port, 1, with_others=shares)
        model_facts(model)  # what is wrong with it is said at once
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Serving(engine_config, server_config, socks, metrics_sock, started).serve())
    finally:
        for sock in socks:
            sock.close()


class _Serving:
    """Owns one run of the server: its signals, the engine, this process's API and the other API processes."""

    def __init__(
        self,
        engine_config: EngineConfig,
        server_config: ServerConfig,
        socks: list[socket.socket],
        metrics_sock: socket.socket | None,
        started: float,
    ) -> None:
        self._engine_config = engine_config
        self._config = server_config
        self._socks = socks
        self._metrics_sock = metrics_sock
        self._started = started
        self._stopping = asyncio.Event()
        self._force_exit = False
        self._loading_line = LoadingLine()
        self._names = server_config.served_model_name or (engine_config.model.model,)

    async def serve(self) -> int:
        from quire.launch import start_engine

        _catch_signals(self._on_signal)
        client = await start_engine(self._engine_config, self._loading_line, num_clients=len(self._socks))
        try:
            await self._serve(client)
            return 0
        finally:
            if client.ready is None or client.dead:  # it is deep in loading and would not hear us for seconds
                client.kill()
            await client.close(FORCED_SECONDS if self._force_exit else CLOSE_SECONDS)

    async def _serve(self, client: Client) -> None:
        from quire.server.fleet import Fleet
        from quire.server.serving import ApiServer, admission_cells
        from quire.server.supervisor import Supervisor

        metrics = self._make_metrics(client)
        fleet = Fleet(self._engine_config, self._config, client.folder, self._socks[1:])
        waiting = admission_cells(client.folder, 0, len(self._socks))
        api = ApiServer(self._engine_config, self._config, client, metrics, self._socks[0], 0, waiting)

        def reload_keys() -> None:
            api.reload_keys()
            fleet.tell("keys")

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_keys)
        supervisor = Supervisor(client, self._config.max_restarts, fleet.tell)
        late = self._config.reuse_port  # until the model is loaded the port is another server's
        serving = asyncio.create_task(_forever()) if late else api.start(self._metrics_sock)
        stopping = asyncio.create_task(self._stopping.wait())
        ended: asyncio.Task[str] = asyncio.create_task(_forever())  # type: ignore[arg-type]
        loading = asyncio.create_task(self._load(api, fleet))
        lost: asyncio.Task[int] = asyncio.create_task(_forever())  # type: ignore[arg-type]
        tasks = [serving, stopping, ended, loading, lost]
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                if late:
                    serving = api.start(self._metrics_sock)
                    tasks.append(serving)
                self._announce(client)
                ended = asyncio.create_task(supervisor.run())
                tasks.append(ended)
                lost = asyncio.create_task(fleet.wait_any_ended())
                tasks.append(lost)
                await asyncio.wait({stopping, ended, serving, lost}, return_when=asyncio.FIRST_COMPLETED)
            broken = self._what_broke(ended, lost)
            supervisor.stop()
            await self._stop(client, api, fleet, broken=broken is not None)
            if broken is None and ended.done():  # while the last requests were finished
                broken = ended.result()
            if broken is not None:
                raise EngineDeadError(f"{broken}; the server has stopped.")
        finally:
            self._loading_line.end()
            fleet.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _make_metrics(self, client: Client) -> Metrics:
        """The counters: of this process, or of all of them in one file."""
        from quire.observability.cells import SharedCells
        from quire.observability.metrics import Metrics
        from quire.server.member import CELLS_FILE

        count = len(self._socks)
        if count == 1:
            return Metrics(self._names[0], lambda: client.stats)
        SharedCells.create(client.folder / CELLS_FILE, count)
        metrics = Metrics(self._names[0], None, SharedCells(client.folder / CELLS_FILE, 0, count))
        client.on_stats = metrics.publish
        return metrics

    async def _load(self, api: ApiServer, fleet: Fleet) -> None:
        """Until every API process has what it needs; from then on requests are taken, here first."""
        both = asyncio.create_task(api.load()), asyncio.create_task(fleet.start())
        try:
            service, _ = await asyncio.gather(*both)
        finally:
            for task in both:  # where one fails the other is not waited for
                task.cancel()
        api.begin(service)
        fleet.tell("go")

    def _announce(self, client: Client) -> None:
        from quire.frontend.validate import MAX_CHOICES
        from quire.server.limits import MAX_BODY_BYTES

        self._loading_line.end()
        if client.ready is None:
            return
        text = banner(
            client.ready,
            names=self._names,
            url=url_of(self._socks[0], "https" if self._config.ssl_certfile else "http"),
            keys=len(keys_of(self._config)),
            open_host=not self._socks[0].getsockname()[0].startswith(("127.", "::1")),
            max_body_bytes=MAX_BODY_BYTES,
            max_choices=MAX_CHOICES,
            num_processes=len(self._socks),
            seconds=time.monotonic() - self._started,
        )
        print(text, file=sys.stderr, flush=True)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._force_exit = True
        self._stopping.set()

    @staticmethod
    def _what_broke(ended: asyncio.Task[str], lost: asyncio.Task[int]) -> str | None:
        """What ended without having been told to, if anything."""
        if ended.done():
            return ended.result()
        if lost.done():
            return f"An API process has ended unexpectedly with code {lost.result()}"
        return None

    async def _stop(self, client: Client, api: ApiServer, fleet: Fleet, *, broken: bool) -> None:
        """Take nothing new, let what runs finish for a while, close."""
        num_running = max(client.num_in_flight, client.stats.num_running + client.stats.num_waiting)
        seconds = BROKEN_SECONDS if broken else self._config.shutdown_timeout
        if num_running and not broken:
            log.warning("Stopping: finishing %d requests (a second signal ends them now).", num_running)
        fleet.tell(f"drain {seconds}")
        others = asyncio.create_task(fleet.wait_all_ended())
        await asyncio.gather(api.stop(seconds, lambda: self._force_exit), self._wait_for(others, seconds))

    async def _wait_for(self, others: asyncio.Task[None], seconds: float) -> None:
        """The same for the other processes; those that take longer are killed."""
        limit = time.monotonic() + seconds + 1.5
        while not others.done() and time.monotonic() < limit and not self._force_exit:
            await asyncio.wait({others}, timeout=0.1)
        others.cancel()


async def _forever() -> None:
    await asyncio.Event().wait()


def _catch_signals(on_signal: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
