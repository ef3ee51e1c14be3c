"""One process's share of a server: web server, text side, and an end in which nothing new is taken.

start ─► 503 to all ─► load ─► begin ─► 200 ─► stop: what runs may finish ─► closed
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quire.config import EngineConfig, ServerConfig
from quire.errors import ConfigError
from quire.frontend.media import load_media
from quire.frontend.service import TextService
from quire.frontend.text_side import load_text_side
from quire.observability.cells import Cells, SharedCells
from quire.observability.metrics import Metrics
from quire.server.admission import NUM_CELLS, Admission, Bounds
from quire.server.app import OPERATION_ROUTES, Application
from quire.server.auth import Gate, hosts_of
from quire.server.keys import Key, keys_of
from quire.server.state import ServerState
from quire.server.web import make_room, web_server
from quire.sources import model_facts

if TYPE_CHECKING:
    from quire.frontend.client import Client

log = logging.getLogger("quire.server")
HAND_OVER_SECONDS = 0.5
_SEED_STEP = 1 << 32
"""Between the seeds of two processes: requests that bring none must not get the same ones."""


class ApiServer:
    """Owns the web server of this process.

    Args:
        engine_config, server_config: the settings.
        client: the engine.
        metrics: fed by the requests of this process.
        sock: where requests arrive.
        index: which of the API processes this is.
        cells: where all of them count who waits; None where there is one.
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        server_config: ServerConfig,
        client: Client,
        metrics: Metrics,
        sock: socket.socket,
        index: int = 0,
        cells: Cells | None = None,
    ) -> None:
        self._engine_config = engine_config
        self._config = server_config
        self._client = client
        self._sock = sock
        self._index = index
        names = server_config.served_model_name or (engine_config.model.model,)
        self.state = ServerState(
            client,
            names,
            metrics,
            Admission(_bounds(server_config), metrics.stats, cells),
            strict=server_config.strict,
            trust_request_chat_template=server_config.trust_request_chat_template,
        )
        keys = keys_of(server_config)
        hosts = hosts_of(server_config.allowed_hosts, server_config.host, closed=bool(keys))
        self._gate = Gate((), hosts)
        self._know(keys)
        self._server = web_server(Application(self.state, self._gate), server_config)
        self._metrics: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None

    def start(self, metrics_sock: socket.socket | None = None) -> asyncio.Task[None]:
        """Take connections from now on; on a further socket those that want /metrics only."""
        make_room(self._config.max_connections)
        if metrics_sock is not None:
            pages = web_server(Application(self.state, self._gate, OPERATION_ROUTES), self._config)
            self._metrics = asyncio.create_task(pages.serve(sockets=[metrics_sock]))
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        return self._serving

    def reload_keys(self) -> None:
        """Read the keys again; those that cannot be read leave the old ones in place."""
        try:
            keys = keys_of(self._config)
        except ConfigError as error:
            log.error("The API keys stay as they were: %s", error.message)
            return
        if self._gate.closed and not keys:
            log.error("The API keys stay as they were: there would be none, and everybody could enter.")
            return
        self._know(keys)
        log.warning("There are %d API keys now.", len(keys))

    def _know(self, keys: tuple[Key, ...]) -> None:
        self.state.admission.know(keys)
        self._gate.change(keys)

    async def load(self) -> TextService:
        """Read the tokenizer while the engine loads."""
        model, config = self._engine_config.model, self._config
        loop = asyncio.get_running_loop()
        facts = model_facts(model)
        tokenizer, template = await loop.run_in_executor(None, load_text_side, model, config.chat_template)
        media = load_media(facts, self._engine_config.media, tokenizer, self.state.names[0])
        ready = await self._client.wait_ready()
        self.state.metrics.set_max_model_len(ready.max_model_len)
        return TextService(
            tokenizer,
            template,
            facts,
            self._client,
            seed=model.seed + self._index * _SEED_STEP,
            use_generation_config=config.generation_config == "auto",
            metrics=self.state.metrics,
            stream_interval=config.stream_interval,
            max_logprobs=model.max_logprobs,
            by_priority=self._engine_config.scheduler.scheduling_policy == "priority",
            tool_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            media=media,
        )

    def begin(self, service: TextService) -> None:
        """Answer requests from now on."""
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection needs to look at it again
        gc.set_threshold(10_000, 20, 20)
        self.state.serve(service)

    async def stop(self, seconds: float, forced: Callable[[], bool] = lambda: False) -> None:
        """Refuse what is new, let what runs finish for so long or until `forced()`, close."""
        serving, limit = self._serving, time.monotonic() + seconds
        if self._config.reuse_port and serving is not None:
            await self._hand_over()
        self.state.draining = True
        running = set(self._server.server_state.tasks)  # whoever comes now gets his 503 at once, and is not waited for
        while running and time.monotonic() < limit and not forced():
            _, running = await asyncio.wait(running, timeout=0.05)
        self._server.should_exit = True
        if self._metrics is not None:
            self._metrics.cancel()
        if serving is None:
            return
        while not serving.done() and time.monotonic() < limit and not forced():
            await asyncio.wait({serving}, timeout=0.1)
        if not serving.done():
            self._server.force_exit = True
            for task in list(self._server.server_state.tasks):
                task.cancel()
            await asyncio.wait({serving}, timeout=1.0)

    async def _hand_over(self) -> None:
        """Leave new connections to the server that shares the port; those that were taken bring their request yet."""
        for server in self._server.servers:
            server.close()
        self._sock.close()
        await asyncio.sleep(HAND_OVER_SECONDS)


def _bounds(config: ServerConfig) -> Bounds:
    return Bounds(config.max_num_queued_reqs, config.max_num_queued_tokens, config.max_queue_time)


ADMISSION_FILE = "admission"
"""In the private folder: who waits, of all processes."""


def admission_cells(folder: Path, index: int, num_processes: int) -> Cells | None:
    """Where API processes count together; process 0 makes the file. None for one that is alone."""
    if num_processes == 1:
        return None
    if index == 0:
        SharedCells.create(folder / ADMISSION_FILE, num_processes, NUM_CELLS)
    return SharedCells(folder / ADMISSION_FILE, index, num_processes, NUM_CELLS)
