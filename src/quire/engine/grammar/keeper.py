"""Keeper: owns the state of every constrained request: which tokens it may say next, and whether that is known yet.

    admit ─ held ─► grammar compiled ─► first mask ─ released ─► token committed ─► next mask ─► … ─► finished
                         │                                                      ▲
                         └► thoughts first: free, until one of their ends ──────┘

A state is a function of the grammar and of the committed tokens, so a preempted request keeps it, and a lost worker's
requests get it back from another one. Nobody waits for a slow grammar: a request whose mask is not there in time loses
the step's token and its row, and comes back when the mask is there. Requests of a grammar whose masks take much work
run only when their masks are ready.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from quire.engine.grammar import Masks
from quire.engine.grammar.library import MAX_STRIKES, Entry, Library
from quire.engine.grammar.pace import Pace
from quire.engine.grammar.pool import Pool, Worker
from quire.engine.grammar.seats import Seat, Seats
from quire.engine.grammar.wire import Advance, Compile, Compiled, Masked, Start
from quire.engine.scheduler.request import Request
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.messages import Constraint, pack_ids

log = logging.getLogger("quire.engine")

WAIT_SECONDS = 0.02
"""So long a step waits for its masks; longer where steps themselves take longer, up to MOST_SECONDS."""
MOST_SECONDS = 0.2
SLOW_SECONDS = 0.01
"""A grammar is slow when the masks of one step have taken this much processor time."""
REST_SECONDS = 0.002


class Constrained:
    """One request.

    Attributes:
        free: it thinks; any token may come.
        openers: tokens that begin thoughts, as long as nothing was said.
        begin: where in its tokens the grammar begins.
        seen: tokens that were looked at.
        mask: what may come after the tokens seen; None if that is not known.
    """

    __slots__ = ("begin", "constraint", "entry", "free", "gap", "mask", "openers", "request", "seat", "seen")

    def __init__(self, request: Request, constraint: Constraint, entry: Entry) -> None:
        self.request = request
        self.constraint = constraint
        self.entry = entry
        gate = constraint.gate
        self.free = gate is not None and gate.inside
        self.openers = frozenset(gate.openers if gate is not None and not self.free else ())
        self.gap = False
        self.begin = self.seen = request.known
        self.mask: bytes | None = None
        self.seat: Seat | None = None


class Keeper:
    """Args:
    scheduler: holds and ends requests.
    pool: workers.
    library: grammars in them.
    pace: keeps requests of slow grammars out of steps until their masks are there.
    num_lines: of the mask memory.
    wait_seconds: the patience of one step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pool: Pool,
        library: Library,
        pace: Pace,
        *,
        num_lines: int,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._library = library
        self._pace = pace
        self._wait_seconds = wait_seconds
        self._live: dict[int, Constrained] = {}
        self._seats = Seats(pool, num_lines)
        self._last_step = time.monotonic()

    # ---- what the loop asks --------------------------------------------------------------------------------------

    def admit(self, request: Request, constraint: Constraint) -> None:
        """A held request has come."""
        if request.state == "finished":
            return
        entry = self._library.find(constraint.grammar)
        constrained = self._live[request.id] = Constrained(request, constraint, entry)
        entry.users.add(constrained)
        if entry.state == "ready":
            self._begin(constrained)
        elif entry.state == "failed":
            self._refuse(constrained, entry.error)

    def poll(self) -> None:
        """Take in what workers have said."""
        if self._pool.workers:
            self._take_in(0.0)

    def mark(self, step: Step) -> None:
        """Samples that must wait for a mask."""
        if not self._live:
            return
        samples = (share for share in step.shares if share.samples)
        for index, share in enumerate(samples):
            constrained = self._live.get(share.request.id)
            if constrained is not None and not constrained.free:
                step.plan.masked.append(index)

    def follow(self) -> None:
        """Bring every request up to its committed tokens."""
        jobs: dict[Entry, list[tuple[int, int]]] = {}
        for constrained in list(self._live.values()):
            request = constrained.request
            if request.state == "finished":
                self._drop(constrained)
                continue
            while constrained.seen < request.known and request.id in self._live:
                token = request.tokens[constrained.seen]
                constrained.seen += 1
                self._follow_one(constrained, token, jobs)
        for entry, moves in jobs.items():
            self._post_moves(entry, moves)
        if jobs:
            self._pool.flush()

    def masks(self, step: Step) -> Masks:
        """The masks of this step; whoever's is late is put on hold."""
        now, last = time.monotonic(), self._last_step
        self._last_step = now
        if not self._live:
            return {}
        patience = min(max(self._wait_seconds, now - last), MOST_SECONDS)
        wanted, masked = self._wanted(step), frozenset(step.plan.masked)
        self._wait_for([constrained for index, constrained in wanted if index in masked], now + patience)
        found: Masks = {}
        for index, constrained in wanted:
            request = constrained.request
            if request.state != "running":
                continue
            if constrained.mask is not None and index in masked:
                found[index] = self._with_openers(constrained)
                continue
            self._scheduler.hold(request, void=True)
            if constrained.mask is not None:
                self._scheduler.release_hold(request)
        return found

    def rest(self) -> None:
        """Wait for a moment; a request that comes in meanwhile waits as long."""
        if self._pool.workers:
            self._take_in(REST_SECONDS)

    def filenos(self) -> Sequence[int]:
        """The workers' sockets."""
        return self._pool.filenos()

    def patience(self) -> float:
        """Until the next deadline."""
        return self._pool.next_deadline()

    def prepare(self) -> bool:
        """Let the vocabulary be read."""
        return self._pool.warm()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    # ---- one request ---------------------------------------------------------------------------------------------

    def _begin(self, constrained: Constrained) -> None:
        """Its grammar is there."""
        if constrained.free:
            self._scheduler.release_hold(constrained.request)
        else:
            self._start(constrained)

    def _start(self, constrained: Constrained) -> None:
        """Ask for the first mask, or for the next one in another worker."""
        entry, request = constrained.entry, constrained.request
        if entry.state != "ready":
            return  # `_on_compiled` comes back to it
        worker, constraint = entry.worker, constrained.constraint
        assert worker is not None
        seat = constrained.seat = self._seats.take(worker, constrained)
        if seat is None:
            return  # `_start_those_without` comes back to it
        start = Start(
            entry.key,
            seat.matcher,
            seat.line,
            pack_ids(request.tokens[constrained.begin : constrained.seen]),
            constraint.min_tokens,
            constrained.begin - request.num_prompt,
            constraint.endless,
            constrained.gap,
        )
        self._pool.send(worker, start)

    def _follow_one(self, constrained: Constrained, token: int, jobs: dict[Entry, list[tuple[int, int]]]) -> None:
        """One more token was committed."""
        if constrained.free:
            self._think(constrained)
            return
        if token in constrained.openers:
            self._leave_seat(constrained)
            constrained.free, constrained.openers = True, frozenset()
            self._pace.forget(constrained.request.id)
            return
        constrained.openers = frozenset()
        mask, constrained.mask = constrained.mask, None
        self._pace.wait(constrained.request.id)
        if mask is not None and not mask[token // 8] >> token % 8 & 1:
            self._refuse(constrained, "the grammar and the request's other fields leave no token that both allow")
            return
        seat = constrained.seat
        if seat is not None:
            moves = jobs.setdefault(constrained.entry, [])
            if moves and moves[-1][0] == seat.matcher:  # two tokens of one request are two jobs
                self._post_moves(constrained.entry, moves)
                moves.clear()
            moves.append((seat.matcher, token))
            seat.num_jobs += 1
        if constrained.request.state == "waiting" and constrained.entry.slow:
            self._scheduler.hold(constrained.request)  # nobody behind it waits for its mask

    def _think(self, constrained: Constrained) -> None:
        """Whether the thoughts have just ended."""
        gate, request, end = constrained.constraint.gate, constrained.request, constrained.seen
        assert gate is not None
        for ids in gate.ends:
            begin = end - len(ids)
            if begin >= request.num_prompt and request.tokens[begin:end].tolist() == ids:
                constrained.free, constrained.gap = False, True
                constrained.begin = end
                if constrained.entry.slow:
                    self._pace.slow(request.id)
                self._start(constrained)
                return

    def _with_openers(self, constrained: Constrained) -> bytes:
        mask = constrained.mask
        assert mask is not None
        if not constrained.openers:
            return mask
        bits = bytearray(mask)
        for token in constrained.openers:
            bits[token // 8] |= 1 << token % 8
        constrained.mask = bytes(bits)
        return constrained.mask

    def _refuse(self, constrained: Constrained, error: str) -> None:
        """End a request because of its grammar."""
        param = constrained.constraint.param
        self._scheduler.fail(constrained.request, f"{param}: {error}", param)
        self._drop(constrained)

    def _drop(self, constrained: Constrained) -> None:
        """The request has ended."""
        del self._live[constrained.request.id]
        self._leave_seat(constrained)
        self._pace.forget(constrained.request.id)
        constrained.entry.users.discard(constrained)
        self._library.tidy()

    def _leave_seat(self, constrained: Constrained) -> None:
        seat, constrained.seat, constrained.mask = constrained.seat, None, None
        if seat is not None:
            self._seats.leave(seat)
            self._start_those_without()

    def _start_those_without(self) -> None:
        """Lines of the mask memory may be free again."""
        while found := self._seats.may_try_again():
            for constrained in found:
                if constrained.request.state != "finished" and constrained.seat is None:
                    self._start(constrained)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _wanted(self, step: Step) -> list[tuple[int, Constrained]]:
        """Samples of this step that a grammar holds."""
        samples = (share.request for share in step.shares if share.samples)
        return [
            (index, constrained)
            for index, request in enumerate(samples)
            if (constrained := self._live.get(request.id)) is not None
            and not constrained.free
            and request.state == "running"
        ]

    def _wait_for(self, wanted: list[Constrained], deadline: float) -> None:
        """Until their masks are there, or it takes too long."""
        self.poll()
        while any(one.mask is None and one.seat is not None for one in wanted):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._take_in(left)

    def _post_moves(self, entry: Entry, moves: list[tuple[int, int]]) -> None:
        """Requests of one grammar have one more token each."""
        if entry.worker is not None:
            self._pool.post(entry.worker, Advance([matcher for matcher, _ in moves], [token for _, token in moves]))

    def _slow_down(self, entry: Entry) -> None:
        """From now on its requests wait for their masks before they run."""
        log.warning("the masks of a grammar take long; its requests wait for them")
        entry.slow = True
        for user in entry.users:
            if not user.free:
                self._pace.slow(user.request.id, ready=user.mask is not None)

    # ---- what workers say ----------------------------------------------------------------------------------------

    def _take_in(self, wait_s: float) -> None:
        said, lost = self._pool.poll(wait_s)
        for worker, message in said:
            if isinstance(message, Compiled):
                self._on_compiled(worker, message)
            elif isinstance(message, Masked):
                self._on_masked(message)
        for worker in lost:
            self._on_lost(worker)

    def _on_compiled(self, worker: Worker, message: Compiled) -> None:
        entry = self._library.of(message.key)
        if entry is None or entry.worker is not worker or entry.state != "compiling":
            return
        if message.error is not None:
            self._library.fail(entry, message.error, keep=True)
            for user in list(entry.users):
                self._refuse(user, message.error)
        elif self._library.compiled(entry):
            for user in list(entry.users):
                if user.seat is None:
                    self._begin(user)

    def _on_masked(self, message: Masked) -> None:
        answered = self._seats.answered(message.matchers)
        if message.seconds > SLOW_SECONDS:
            entry = next((seat.owner.entry for seat in answered if seat.owner is not None), None)
            if entry is not None and not entry.slow:
                self._slow_down(entry)
        for seat in answered:
            owner = seat.owner
            if owner is None:
                continue
            if seat.matcher in message.errors:
                self._refuse(owner, message.errors[seat.matcher])
            elif not seat.num_jobs:
                owner.mask = self._pool.line(seat.line)
                if owner.entry.slow:
                    self._pace.slow(owner.request.id, ready=True)
                self._scheduler.release_hold(owner.request)
        self._start_those_without()

    def _on_lost(self, worker: Worker) -> None:
        """A worker has died, or was killed: whoever is to blame ends, the others move."""
        what = "took longer than its time limit" if worker.late else "crashed or ran out of its memory"
        job = worker.jobs[0] if worker.jobs else None
        owners: dict[int, int] = {}
        for seat in self._seats.clear(worker):
            if seat.owner is not None:
                owners[seat.matcher] = seat.owner.entry.key
                seat.owner.seat = seat.owner.mask = None
        entries = self._library.living_in(worker)
        for entry in entries:
            entry.worker = None
        if self._pool.broken is not None:
            for entry in entries:
                self._give_up(entry, "grammars cannot be used with this model's tokenizer")
            return
        log.warning("a grammar worker %s", what if job else "died")
        blamed = self._blamed(job, owners)
        for entry in entries:
            if entry.key in blamed:
                entry.strikes += MAX_STRIKES if worker.late and len(blamed) == 1 else 1
            if entry.strikes >= MAX_STRIKES:
                self._give_up(entry, f"the grammar {what} while it was {_doing(job)}")
            elif entry.users:
                self._library.compile(entry)
            else:
                self._give_up(entry, "")
        self._start_those_without()

    def _blamed(self, job: object, owners: dict[int, int]) -> set[int]:
        """Keys of the grammars that the worker was busy with; those of several are kept apart from then on."""
        if isinstance(job, (Compile, Start)):
            return {job.key}
        if isinstance(job, Advance):
            return {owners[matcher] for matcher in job.matchers if matcher in owners}
        return set()

    def _give_up(self, entry: Entry, error: str) -> None:
        self._library.fail(entry, error, keep=False)
        for user in list(entry.users):
            self._refuse(user, error)


def _doing(job: object) -> str:
    return "compiled" if isinstance(job, Compile) else "followed"
