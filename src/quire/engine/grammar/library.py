"""Library: owns the grammars that are compiled, and says in which worker each one lives.

A grammar is compiled where no request depends on the worker: it may take its time, or end the process. Once there are
`max_workers`, one that compiled quickly moves in with others; a slow one stays where it was compiled.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from quire.engine.grammar.pool import Pool, Worker
from quire.engine.grammar.wire import Compile, Forget
from quire.messages import Grammar

if TYPE_CHECKING:
    from quire.engine.grammar.keeper import Constrained

QUICK_SECONDS = 0.05
NUM_NURSERIES = 2
"""Workers beyond the limit, for compiling only, and for grammars that are slow."""
MAX_STRIKES = 2


@dataclass(eq=False)
class Entry:
    """One grammar.

    Attributes:
        error: why it cannot be used.
        slow: one of its masks was late, so its requests wait for their masks before they run.
        strikes: workers that died while they made its masks.
    """

    key: int
    grammar: Grammar
    worker: Worker | None = None
    state: Literal["compiling", "ready", "failed"] = "compiling"
    error: str = ""
    slow: bool = False
    strikes: int = 0
    begun: float = 0.0
    users: set[Constrained] = field(default_factory=set)


class Library:
    """Args:
    pool: of workers.
    max_workers: processes in which grammars live.
    max_grammars: that nobody uses and are kept.
    """

    def __init__(self, pool: Pool, *, max_workers: int, max_grammars: int) -> None:
        self._pool = pool
        self._max_workers = max_workers
        self._max_grammars = max_grammars
        self._entries: OrderedDict[Grammar, Entry] = OrderedDict()
        self._by_key: dict[int, Entry] = {}
        self._next_key = 0

    def find(self, grammar: Grammar) -> Entry:
        """The entry of a grammar; if it is new its compilation begins."""
        entry = self._entries.get(grammar)
        if entry is None:
            entry = Entry(self._next_key, grammar)
            self._next_key += 1
            self._entries[grammar] = self._by_key[entry.key] = entry
            self.compile(entry)
        self._entries.move_to_end(grammar)
        return entry

    def of(self, key: int) -> Entry | None:
        """The entry with this number, if it is still there."""
        return self._by_key.get(key)

    def living_in(self, worker: Worker) -> list[Entry]:
        """The grammars of one worker."""
        return [entry for entry in self._entries.values() if entry.worker is worker]

    def compile(self, entry: Entry) -> None:
        """Begin, or begin anew."""
        self._send(entry, self._place())

    def compiled(self, entry: Entry) -> bool:
        """A worker has it; False if it moves on to another one first."""
        quick = time.monotonic() - entry.begun < QUICK_SECONDS
        regular, worker = self._pool.workers[: self._max_workers], entry.worker
        if worker is not None and worker not in regular and quick and regular and not entry.strikes:
            self._pool.send(worker, Forget(entry.key))
            self._send(entry, min(regular, key=self._load))
            return False
        entry.state = "ready"
        return True

    def fail(self, entry: Entry, error: str, *, keep: bool) -> None:
        """It cannot be used. keep: nor could it be another time."""
        entry.state, entry.error = "failed", error
        if not keep:
            self._remove(entry)

    def tidy(self) -> None:
        """Forget those that were not used for longest."""
        over = len(self._entries) - self._max_grammars
        if over > 0:
            for entry in [entry for entry in self._entries.values() if not entry.users][:over]:
                self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        self._entries.pop(entry.grammar, None)
        self._by_key.pop(entry.key, None)
        if entry.worker is not None and not entry.worker.dead:
            self._pool.send(entry.worker, Forget(entry.key))

    def _send(self, entry: Entry, worker: Worker) -> None:
        entry.worker, entry.state, entry.begun = worker, "compiling", time.monotonic()
        self._pool.send(worker, Compile(entry.key, entry.grammar))

    def _place(self) -> Worker:
        """A worker on which nobody waits, if there can be one."""
        workers = self._pool.workers
        idle = [worker for worker in workers if self._load(worker) == (0, 0)]
        if idle:
            return idle[0]
        if len(workers) < self._max_workers + NUM_NURSERIES:
            return self._pool.fork()
        return min(workers[self._max_workers :], key=lambda worker: len(worker.jobs))

    def _load(self, worker: Worker) -> tuple[int, int]:
        return (sum(len(entry.users) for entry in self.living_in(worker)), len(worker.jobs))
