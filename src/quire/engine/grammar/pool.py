"""Pool: owns the worker processes in which grammars live, and the memory in which their masks lie.

Nothing here waits for a worker. Each job has a deadline; a worker that misses one is killed, and whoever had given it
work is told by `poll`, as he is of one that died by itself.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from quire.engine.grammar.wire import (
    FORK,
    Advance,
    Channel,
    Closed,
    Compile,
    FromWorker,
    Hello,
    Setup,
    Start,
    ToWorker,
    line_bytes,
)

log = logging.getLogger("quire.engine")

START_SECONDS = 60.0
"""For reading the vocabulary and forking; only a broken machine needs so long."""


@dataclass(eq=False)
class Worker:
    """One process, as the engine sees it.

    Attributes:
        jobs: those that will be answered, in order, each with the moment when it was sent.
        pid: None until it has begun.
    """

    channel: Channel
    begun: float
    pid: int | None = None
    jobs: deque[ToWorker] = field(default_factory=deque)
    busy_since: float = 0.0
    dead: bool = False
    late: bool = False


class Pool:
    """Args:
    setup: what workers need to know.
    job_seconds: the time limit of one job.
    """

    def __init__(self, setup: Setup, *, job_seconds: float) -> None:
        self._setup = setup
        self._job_seconds = job_seconds
        self._line_bytes = line_bytes(setup.vocab_size)
        self._memory_fd = os.memfd_create("quire-masks")
        os.ftruncate(self._memory_fd, setup.num_lines * self._line_bytes)
        self._memory = mmap.mmap(self._memory_fd, setup.num_lines * self._line_bytes)
        self._parent: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._poller = select.poll()
        self._by_fileno: dict[int, Worker] = {}
        self.workers: list[Worker] = []
        self.broken: str | None = None
        """Why no worker can be made, ever: the library cannot read this tokenizer."""

    # ---- processes -----------------------------------------------------------------------------------------------

    def warm(self) -> bool:
        """Let the vocabulary be read before anyone asks; False if that is done or under way."""
        if self._control is not None or self.broken:
            return False
        self._start_parent()
        return True

    def fork(self) -> Worker:
        """A new worker; it takes jobs at once and does them when it is up."""
        ours, theirs = socket.socketpair()
        worker = Worker(Channel(ours, FromWorker), time.monotonic())
        with theirs:
            for _ in range(2):  # the parent may have ended unnoticed
                if self._control is None:
                    self._start_parent()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [FORK], [theirs.fileno()])
                    break
                except OSError:
                    self._end_parent()
        self.workers.append(worker)
        self._by_fileno[worker.channel.fileno()] = worker
        self._poller.register(worker.channel.fileno(), select.POLLIN)
        return worker

    def kill(self, worker: Worker) -> None:
        """End a worker; `poll` does not speak of it any more."""
        worker.dead = True
        if worker in self.workers:
            self.workers.remove(worker)
            self._poller.unregister(worker.channel.fileno())
            del self._by_fileno[worker.channel.fileno()]
        worker.channel.close()
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """End all processes and give back the memory."""
        for worker in list(self.workers):
            self.kill(worker)
        self._end_parent()
        self._memory.close()
        os.close(self._memory_fd)

    def _start_parent(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "quire.engine.grammar.child",
                    str(theirs.fileno()),
                    str(self._memory_fd),
                    msgspec.json.encode(self._setup).decode(),
                ],
                pass_fds=(theirs.fileno(), self._memory_fd),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.setblocking(False)
        self._control = ours

    def _end_parent(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._parent is not None:
            self._parent.kill()
            self._parent.wait()
            self._parent = None

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def send(self, worker: Worker, job: ToWorker) -> None:
        """Give a worker something to do. One that is gone shows at the next `poll`."""
        try:
            worker.channel.send(job)
        except Closed:  # it was gone before: the job has nothing to do with that
            return
        self._sent(worker, job)

    def post(self, worker: Worker, job: ToWorker) -> None:
        """The same at the next `flush`: one call of the system for several jobs."""
        worker.channel.post(job)
        self._sent(worker, job)

    def flush(self) -> None:
        """Send what was posted, as far as it is taken."""
        for worker in self.workers:
            with contextlib.suppress(Closed):
                worker.channel.flush()

    def _sent(self, worker: Worker, job: ToWorker) -> None:
        if isinstance(job, (Compile, Start, Advance)):
            if not worker.jobs:
                worker.busy_since = time.monotonic()
            worker.jobs.append(job)

    def line(self, number: int) -> bytes:
        """A mask, copied."""
        start = number * self._line_bytes
        return self._memory[start : start + self._line_bytes]

    def filenos(self) -> list[int]:
        """What becomes readable when a worker has something to say."""
        return [worker.channel.fileno() for worker in self.workers]

    def next_deadline(self) -> float:
        """Seconds until a worker is too late, if it says nothing before; infinite if none has work."""
        now = time.monotonic()
        return min((max(0.0, self._deadline(w) - now) for w in self.workers if w.jobs), default=float("inf"))

    def poll(self, wait_s: float = 0.0) -> tuple[list[tuple[Worker, FromWorker]], list[Worker]]:
        """What workers said, and those that died or were killed for being late, with their unfinished jobs.

        Waits up to wait_s for the first word.
        """
        self._hear_parent()
        said: list[tuple[Worker, FromWorker]] = []
        lost: list[Worker] = []
        if not self.workers:
            return said, lost
        for number, _ in self._poller.poll(max(0, round(wait_s * 1000))):
            worker = self._by_fileno[number]
            try:
                said += [(worker, message) for message in self._taken_in(worker)]
            except (Closed, msgspec.MsgspecError):
                lost.append(worker)
        now = time.monotonic()
        self.flush()
        for worker in self.workers:
            if worker.jobs and worker not in lost and now > self._deadline(worker):
                worker.late = True
                lost.append(worker)
                if worker.pid is None:
                    self._end_parent()
        for worker in lost:
            self.kill(worker)
        return said, lost

    def _taken_in(self, worker: Worker) -> list[FromWorker]:
        messages: list[FromWorker] = []
        for message in worker.channel.receive():
            worker.busy_since = time.monotonic()
            if isinstance(message, Hello):
                worker.pid = message.pid
            else:
                worker.jobs.popleft()
                messages.append(message)  # type: ignore[arg-type]
        return messages

    def _deadline(self, worker: Worker) -> float:
        return worker.begun + START_SECONDS if worker.pid is None else worker.busy_since + self._job_seconds

    def _hear_parent(self) -> None:
        """The parent speaks only to say that it cannot read the tokenizer."""
        if self._control is None:
            return
        try:
            words = self._control.recv(1000)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if words:
            self.broken = words.decode("utf-8", "replace")
            log.error("grammars cannot be used with this tokenizer: %s", self.broken)
        self._end_parent()
