"""An engine that knows no model: every request gets the same text, one token per step. And a server around it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from vocabularies import chat_tokenizer

from quire.checkpoint import Fields, ModelFacts
from quire.errors import EngineDeadError, UnavailableError
from quire.frontend.service import TextService
from quire.frontend.streams import RequestStream
from quire.frontend.templates import ChatTemplate
from quire.messages import EngineStats, Ready, TokenLogprobs, TokenOutput
from quire.observability.metrics import Metrics
from quire.params import SamplingParams
from quire.server.admission import Admission, Bounds
from quire.server.app import ROUTES, Application
from quire.server.auth import Gate
from quire.server.keys import Key
from quire.server.limits import guarded_protocol
from quire.server.listen import listen, url_of
from quire.server.routing import Route
from quire.server.state import ServerState

ANSWER = "Hello world, how are you today? 🙂 I count: 123 456 789, then ☂ and 世."
READY = Ready(
    device="cpu",
    dtype="float32",
    weights_bytes=1 << 20,
    kv_bytes=1 << 20,
    num_blocks=101,
    block_size=16,
    max_model_len=256,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    mixed_sizes=[],
    mixed_patience=0,
    mixed_alone=0,
    vocab_size=512,
    seconds={"weights": 0.1},
)


class FakeClient:
    """Stands in for `frontend.client.Client`.

    Args:
        answer: the text of every answer, ended by the end token.
        step_s: seconds between two tokens.
        fail_after: tokens after which each request fails.
        endless: repeat the answer for ever.
        max_model_len: of prompt and answer together.
    """

    def __init__(
        self,
        answer: str = ANSWER,
        *,
        step_s: float = 0.0,
        fail_after: int | None = None,
        endless: bool = False,
        max_model_len: int = READY.max_model_len,
    ) -> None:
        self.ready: Ready | None = msgspec.structs.replace(READY, max_model_len=max_model_len)
        self.stats = EngineStats(num_running=0, kv_usage=0.25, num_preemptions=3)
        self.dead = False
        self.reason = self.detail = ""
        self.folder = Path("/nowhere")
        self.submitted: list[tuple[list[int], SamplingParams, dict[str, Any]]] = []
        self.steps: dict[int, int] = {}
        self.step_s, self.fail_after, self.endless = step_s, fail_after, endless
        self.answer_ids = chat_tokenizer().encode(answer, add_special_tokens=False)
        self._ids = itertools.count()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, RequestStream] = {}
        self._came_up: asyncio.Event | None = None
        self._ended: asyncio.Event | None = None

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, stream: RequestStream, **more: Any) -> None:
        if self.dead:
            raise EngineDeadError("dead")
        if self.ready is None:
            raise UnavailableError("loading")
        id_ = next(self._ids)
        self.submitted.append((list(prompt_ids), params, more))
        stream.attach(id_, self._abort)
        self._streams[id_] = stream
        self._tasks[id_] = asyncio.get_running_loop().create_task(self._run(id_, params, more["stop_token_ids"]))

    @property
    def num_in_flight(self) -> int:
        return len(self._tasks)

    @property
    def in_flight(self) -> list[int]:
        return list(self._tasks)

    def _abort(self, id_: int) -> None:
        task = self._tasks.pop(id_, None)
        self._streams.pop(id_, None)
        if task is not None:
            task.cancel()

    async def _run(self, id_: int, params: SamplingParams, ends: list[int]) -> None:
        if params.prompt_logprobs is not None:
            prompt = self.submitted[id_][0]
            scored = [TokenLogprobs([token, token, 7], [-0.25, -0.25, -2.0], 1) for token in prompt[1:]]
            self._streams[id_].push(TokenOutput(id_, [], prompt_logprobs=scored))
        ids = itertools.cycle(self.answer_ids) if self.endless else iter([*self.answer_ids, *ends[-1:]])
        for count, token_id in enumerate(ids, 1):
            await asyncio.sleep(self.step_s)
            self.steps[id_] = count
            reason = "stop" if token_id in ends else "length" if count == params.max_tokens else None
            error = None
            if self.fail_after is not None and count > self.fail_after:
                reason, error = "error", "device lost at /dev/secret0"
            logprobs = None
            if params.logprobs is not None:
                top = [(token_id + i) % 300 for i in range(300 if params.logprobs == -1 else params.logprobs)]
                logprobs = [TokenLogprobs([token_id, *top], [-0.5, *(-0.5 - i for i in range(len(top)))], 1)]
            out = TokenOutput(id_, [token_id], reason, 4, logprobs, 0.001, error)  # type: ignore[arg-type]
            if reason is not None:
                self._tasks.pop(id_, None)
                self._streams[id_].push(out)
                self._streams.pop(id_, None)
                return
            self._streams[id_].push(out)

    def die(self) -> None:
        """The engine process ends."""
        self.dead, self.reason = True, "The engine has ended unexpectedly with code 9"
        for task in self._tasks.values():
            task.cancel()
        for stream in list(self._streams.values()):
            stream.fail(EngineDeadError("The engine ended while it worked on this request."))
        self._tasks.clear()
        self._streams.clear()


FACTS = ModelFacts(
    folder=Path("/nowhere"),
    architectures=("X",),
    vocab_size=512,
    max_model_len=256,
    sliding_window=None,
    eos_token_ids=(chat_tokenizer().token_to_id("<|end|>") or 0,),
    bos_token_id=None,
    dtype=None,
    sampling={"temperature": 0.5, "top_k": 7, "max_new_tokens": 100},
    config=Fields({}, "config.json"),
)


def make_service(client: FakeClient, metrics: Metrics | None = None, **options: Any) -> TextService:
    tokenizer = chat_tokenizer()
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
    return TextService(tokenizer, template, FACTS, client, metrics=metrics, **options)  # type: ignore[arg-type]


class Running:
    """A server in its own thread, on a free port."""

    def __init__(
        self,
        client: FakeClient,
        keys: Sequence[str | Key] = (),
        ready: bool = True,
        strict: bool = False,
        routes: Sequence[Route] = ROUTES,
        bounds: Bounds | None = None,
        hosts: Sequence[str] | None = None,
        max_connections: int = 4096,
    ) -> None:
        self.client = client
        self.metrics = Metrics("fake", lambda: client.stats)
        self.admission = Admission(bounds, lambda: client.stats)
        self.state = ServerState(  # type: ignore[arg-type]
            client, ("fake", "org/fake"), self.metrics, self.admission, strict=strict
        )
        self.admission.know([key for key in keys if isinstance(key, Key)])
        if ready:
            self.state.serve(make_service(client, self.metrics))
        self.gate = Gate(keys, hosts)
        self.app = Application(self.state, self.gate, routes)
        self._sock = listen("127.0.0.1", 0)
        self.url = url_of(self._sock)
        config = uvicorn.Config(
            self.app,
            http=guarded_protocol(max_connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # type: ignore
        )
        self.server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def _main(self) -> None:
        import uvloop

        async def serve() -> None:
            self.loop, self._serving = asyncio.get_running_loop(), asyncio.current_task()
            self._up.set()
            self.server.capture_signals = contextlib.nullcontext  # type: ignore
            await self.server.serve(sockets=[self._sock])

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def call(self, function: Callable[[], Any]) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(function)

    def left_over(self) -> list[str]:
        """What a server without requests must not have: requests in the engine, tasks that still run."""
        assert self.loop is not None
        found: list[str] = []

        async def look() -> None:
            own = (asyncio.current_task(), self._serving)
            found.extend(str(task) for task in asyncio.all_tasks() if task not in own and not task.done())

        asyncio.run_coroutine_threadsafe(look(), self.loop).result(5)
        found += [f"request {id_}" for id_ in self.client.in_flight]
        return found

    def check_nothing_left(self, seconds: float = 2.0) -> None:
        """After all requests have ended, or their clients have."""
        end = time.monotonic() + seconds
        while left := self.left_over():
            assert time.monotonic() < end, left
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join(10)
        self._sock.close()


@contextlib.contextmanager
def running(client: FakeClient | None = None, **options: Any) -> Iterator[Running]:
    server = Running(client or FakeClient(), **options)
    try:
        yield server
        server.check_nothing_left()
    finally:
        server.close()
