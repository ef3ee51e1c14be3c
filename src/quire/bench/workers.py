"""The requests of one run, in this process or shared among several.

Each worker is `python -m quire.bench.workers`; messages over its stdin and stdout are a length and msgpack:

    Job ─►   ◄─ Ready   Start ─►   ◄─ Progress ...   ◄─ Result | Failure
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, BinaryIO, TypeVar

import msgspec

from quire.bench.exchange import Outcome
from quire.bench.load import Job, Load, now
from quire.errors import QuireError, StartupError

LEAD = 0.05
"""Seconds between the word to start and the start: all workers must have heard it."""
T = TypeVar("T")


class RunResult(msgspec.Struct, frozen=True):
    """What a run came to.

    Attributes:
        start: when it began, on the monotonic clock.
        outcomes: in the order of the requests.
        cpu_share: of a core, taken by the busiest worker while it ran.
    """

    start: float
    outcomes: list[Outcome]
    cpu_share: float


class _Ready(msgspec.Struct, tag="ready"):
    pass


class _Start(msgspec.Struct, tag="start"):
    at: float


class _Progress(msgspec.Struct, tag="progress"):
    count: int


class _Failure(msgspec.Struct, tag="failure"):
    message: str


class _Result(msgspec.Struct, tag="result"):
    outcomes: list[Outcome]
    cpu_share: float


_Answer = _Ready | _Progress | _Failure | _Result


def run_job(job: Job, num_workers: int = 1, on_done: Callable[[int], None] = lambda count: None) -> RunResult:
    """Send everything and wait for the end.

    Args:
        job: the requests.
        num_workers: processes; never more than requests or allowed concurrency.
        on_done: called with numbers of requests that have ended.

    Raises:
        QuireError: the server cannot be reached, or a worker ended.
    """
    shares = split(job, num_workers)
    if len(shares) == 1:
        return run_loop(_run_here(job, on_done))
    return run_loop(_run_shared(shares, on_done))


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, with as many open files as the system grants."""
    import uvloop

    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def split(job: Job, num_workers: int) -> list[Job]:
    """The job cut into one for each worker: requests in turn, and the allowed concurrency in even parts."""
    limit = job.max_concurrency
    count = max(1, min(num_workers, len(job.bodies), limit or num_workers))
    return [
        Job(
            target=job.target,
            indices=list(job.indices[k::count]),
            bodies=job.bodies[k::count],
            due=job.due[k::count],
            max_concurrency=None if limit is None else limit // count + (k < limit % count),
            timeout=job.timeout,
        )
        for k in range(count)
    ]


async def _run_here(job: Job, on_done: Callable[[int], None]) -> RunResult:
    load = Load(job, on_done)
    await load.prepare()
    with _no_collection():
        start = now()
        outcomes, cpu_share = await _measured(load, start)
    return RunResult(start, outcomes, cpu_share)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector works now and rests later: it would stop the clock for milliseconds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _measured(load: Load, start: float) -> tuple[list[Outcome], float]:
    """(outcomes, share of a core)"""
    cpu = time.process_time()
    outcomes = await load.run(start)
    return outcomes, (time.process_time() - cpu) / max(now() - start, 1e-9)


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---------------------------------------------------------------------------------------------------------------
# the parent's side


async def _run_shared(shares: list[Job], on_done: Callable[[int], None]) -> RunResult:
    workers = [await _Worker.open() for _ in shares]
    try:
        await asyncio.gather(*(worker.prepare(share) for worker, share in zip(workers, shares, strict=True)))
        start = now() + LEAD
        for worker in workers:
            worker.send(_Start(start))
        results = await asyncio.gather(*(worker.result(on_done) for worker in workers))
    finally:
        for worker in workers:
            await worker.close()
    outcomes = sorted((o for result in results for o in result.outcomes), key=lambda outcome: outcome.index)
    return RunResult(start, outcomes, max(result.cpu_share for result in results))


class _Worker:
    """Owns one child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._decoder = msgspec.msgpack.Decoder(_Answer)

    @classmethod
    async def open(cls) -> _Worker:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "quire.bench.workers")
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    def send(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(_frame(message))

    async def prepare(self, job: Job) -> None:
        assert self._process.stdin is not None
        self.send(job)
        with contextlib.suppress(OSError):
            await self._process.stdin.drain()
        await self._receive()

    async def result(self, on_done: Callable[[int], None]) -> _Result:
        while True:
            answer = await self._receive()
            if isinstance(answer, _Progress):
                on_done(answer.count)
            elif isinstance(answer, _Result):
                return answer

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _receive(self) -> _Ready | _Progress | _Result:
        assert self._process.stdout is not None
        try:
            size = int.from_bytes(await self._process.stdout.readexactly(4), "little")
            answer: _Answer = self._decoder.decode(await self._process.stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            raise StartupError("A worker of the load generator ended unexpectedly.") from None
        if isinstance(answer, _Failure):
            raise QuireError(answer.message)
        return answer


def _frame(message: msgspec.Struct) -> bytes:
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(4, "little") + data


# ---------------------------------------------------------------------------------------------------------------
# the child's side


def main() -> None:
    """Serve one job."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer

    def send(message: _Answer) -> None:
        stdout.write(_frame(message))
        stdout.flush()

    job = msgspec.msgpack.decode(_read(stdin), type=Job)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            run_loop(_serve(job, stdin, send))
        except QuireError as error:
            send(_Failure(error.message))


async def _serve(job: Job, stdin: BinaryIO, send: Callable[[_Answer], None]) -> None:
    with _Batched(send) as progress, _no_collection():
        load = Load(job, progress.add)
        await load.prepare()
        send(_Ready())
        start = msgspec.msgpack.decode(_read(stdin), type=_Start).at
        outcomes, cpu_share = await _measured(load, start)
    send(_Result(outcomes, cpu_share))


class _Batched:
    """Tells of progress now and then."""

    def __init__(self, send: Callable[[_Answer], None]) -> None:
        self._send = send
        self._count = 0
        self._next = 0.0

    def __enter__(self) -> _Batched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._count:
            self._send(_Progress(self._count))

    def add(self, count: int) -> None:
        """Some more have ended."""
        self._count += count
        if now() >= self._next:
            self._send(_Progress(self._count))
            self._count, self._next = 0, now() + 0.2


def _read(stdin: BinaryIO) -> bytes:
    size = int.from_bytes(stdin.read(4), "little")
    return stdin.read(size)


if __name__ == "__main__":
    main()
