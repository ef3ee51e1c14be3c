"""From settings to a serving process and back: bind, start the engine, serve, drain, exit code.

bind ─► config.json ─► engine starts ─► web framework, 503 ─► tokenizer ─► ready, 200 ─► signal: drain ─► exit 0
                                                                                └─ engine ends: errors ─► exit 1
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from quire.checkpoint import ModelFacts, read_facts, resolve
from quire.config import EngineConfig, ServerConfig
from quire.server.banner import LoadingLine, banner
from quire.server.listen import listen, url_of

if TYPE_CHECKING:
    import uvicorn

    from quire.frontend.client import Client
    from quire.frontend.templates import ChatTemplate
    from quire.frontend.tokenizer import Tokenizer
    from quire.server.state import ServerState

log = logging.getLogger("quire.server")


def run(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    """Serve until a signal or the engine's end; returns the exit code.

    Raises:
        ConfigError: a setting cannot work.
        StartupError: the port is taken, or the engine did not come up.
    """
    started = time.monotonic()
    model = engine_config.model
    sock = listen(server_config.host, server_config.port)
    try:
        facts = read_facts(resolve(model.model, model.revision, weights=False))
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Serving(engine_config, server_config, facts, sock, started).serve())
    finally:
        sock.close()


class _Serving:
    """Owns one run of the server."""

    def __init__(
        self,
        engine_config: EngineConfig,
        server_config: ServerConfig,
        facts: ModelFacts,
        sock: socket.socket,
        started: float,
    ) -> None:
        self._engine_config = engine_config
        self._config = server_config
        self._facts = facts
        self._sock = sock
        self._started = started
        self._stopping = asyncio.Event()
        self._force_exit = False
        self._loading_line = LoadingLine()
        self._names = server_config.served_model_name or (engine_config.model.model,)

    async def serve(self) -> int:
        from quire.launch import start_engine

        _catch_signals(self._on_signal)
        client = await start_engine(self._engine_config, self._loading_line)
        try:
            return await self._serve(client)
        finally:
            if client.ready is None:  # it is deep in loading and would not hear us for seconds
                client.kill()
            await client.close()

    async def _serve(self, client: Client) -> int:
        from quire.observability.metrics import Metrics
        from quire.server.app import Application
        from quire.server.auth import Gate
        from quire.server.state import ServerState

        metrics = Metrics(self._names[0], lambda: client.stats)
        trusting = self._config.trust_request_chat_template
        state = ServerState(client, self._names, metrics, trust_request_chat_template=trusting)
        gate = Gate(self._config.api_key)
        server = self._web_server(Application(state, gate))
        serving = asyncio.create_task(server.serve(sockets=[self._sock]))
        stopping = asyncio.create_task(self._stopping.wait())
        ended = asyncio.create_task(client.wait_ended())
        loading = asyncio.create_task(self._load(client, state))
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._announce(client)
                await asyncio.wait({stopping, ended, serving}, return_when=asyncio.FIRST_COMPLETED)
            return await self._stop(client, server, state, serving, engine_ended=ended.done())
        finally:
            self._loading_line.end()
            for task in (serving, stopping, ended, loading):
                task.cancel()
            await asyncio.gather(serving, stopping, ended, loading, return_exceptions=True)

    async def _load(self, client: Client, state: ServerState) -> None:
        """Read the tokenizer while the engine loads; from then on requests are taken."""
        from quire.frontend.service import TextService

        loop = asyncio.get_running_loop()
        tokenizer, template = await loop.run_in_executor(None, self._read_text_side)
        ready = await client.wait_ready()
        state.metrics.set_max_model_len(ready.max_model_len)
        state.serve(
            TextService(
                tokenizer,
                template,
                self._facts,
                client,
                seed=self._engine_config.model.seed,
                use_generation_config=self._config.generation_config == "auto",
                metrics=state.metrics,
                max_logprobs=self._engine_config.model.max_logprobs,
                by_priority=self._engine_config.scheduler.scheduling_policy == "priority",
                tool_parser=self._config.tool_call_parser,
                reasoning_parser=self._config.reasoning_parser,
            )
        )

    def _read_text_side(self) -> tuple[Tokenizer, ChatTemplate]:
        from quire.frontend.text_side import load_text_side

        return load_text_side(self._engine_config.model, self._config.chat_template)

    def _web_server(self, app: object) -> uvicorn.Server:
        import uvicorn

        from quire.server.limits import GuardedProtocol

        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        return server

    def _announce(self, client: Client) -> None:
        from quire.frontend.validate import MAX_CHOICES
        from quire.server.limits import MAX_BODY_BYTES

        self._loading_line.end()
        if client.ready is None:
            return
        text = banner(
            client.ready,
            names=self._names,
            url=url_of(self._sock),
            keys=len(self._config.api_key),
            open_host=not self._sock.getsockname()[0].startswith(("127.", "::1")),
            max_body_bytes=MAX_BODY_BYTES,
            max_choices=MAX_CHOICES,
            seconds=time.monotonic() - self._started,
        )
        print(text, file=sys.stderr, flush=True)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._force_exit = True
        self._stopping.set()

    async def _stop(
        self,
        client: Client,
        server: uvicorn.Server,
        state: ServerState,
        serving: asyncio.Task[None],
        *,
        engine_ended: bool,
    ) -> int:
        """Take nothing new, let what runs finish for a while, close."""
        state.draining = True
        if engine_ended:
            log.error("The engine has ended unexpectedly; the server stops.")
        elif client.num_in_flight:
            log.warning("Stopping: finishing %d requests (a second signal ends them now).", client.num_in_flight)
        server.should_exit = True
        limit = time.monotonic() + (2.0 if engine_ended else self._config.shutdown_timeout)
        while not serving.done() and time.monotonic() < limit and not self._force_exit:
            await asyncio.wait({serving}, timeout=0.1)
        if not serving.done():
            server.force_exit = True
            for task in list(server.server_state.tasks):
                task.cancel()
            await asyncio.wait({serving}, timeout=1.0)
        return 1 if engine_ended else 0


def _catch_signals(on_signal: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
