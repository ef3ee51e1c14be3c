"""Scheduler: owns every request from arrival to its one finish, and decides each step from counts alone.

`plan` hands out one token budget: first to running requests in their order, then to waiting ones in the policy's
order. There are no phases: a decode wants 1 token, a prompt wants many and may get a part, a prefix hit wants less.
Where several tenants share the engine the one that was served least goes first (`tenants.py`).
`commit` takes in what the device sampled. Between the two, `num_computed` is already advanced and `num_pending`
counts what is on its way, so the next step is planned without waiting for the device.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from quire.engine.kv.manager import KVManager
from quire.engine.scheduler.deadlines import Deadlines
from quire.engine.scheduler.limits import Limit, Rider
from quire.engine.scheduler.policy import Policy, WaitingQueue, fcfs
from quire.engine.scheduler.request import NO_ROW, Request
from quire.engine.scheduler.siblings import Siblings
from quire.engine.scheduler.tenants import Tenants
from quire.messages import (
    AddRequest,
    EngineStats,
    FinishReason,
    NewBlocks,
    NewRow,
    StepPlan,
    StepResult,
    TokenLogprobs,
    TokenOutput,
)

log = logging.getLogger("quire.engine")


class Share(NamedTuple):
    """A request's part in one step: it runs tokens up to `end` and, if `samples`, yields a new one.

    `epoch` tells a share planned before a preemption from one planned after it.
    """

    request: Request
    end: int
    samples: bool
    epoch: int


class Step(NamedTuple):
    """What the scheduler keeps of a step: the plan for the device, and whose it was."""

    plan: StepPlan
    shares: list[Share]


class Scheduler:
    """Plans steps and commits their results.

    Args:
        kv: blocks.
        max_num_seqs: rows on the device.
        max_num_batched_tokens: token budget of a step.
        max_model_len: longest request.
        policy: order of waiting requests.
        limits: further bounds; empty by default.
        riders: what else steps carry; empty by default.
        chunked_prefill: whether a prompt may run in parts.
        clock: monotonic seconds, for queue times and deadlines.
    """

    def __init__(
        self,
        kv: KVManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        policy: Policy = fcfs,
        limits: tuple[Limit, ...] = (),
        riders: tuple[Rider, ...] = (),
        chunked_prefill: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kv = kv
        self._budget = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._policy = policy
        self._limits = limits
        self._riders = riders
        self.chunked_prefill = chunked_prefill
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._deadlines = Deadlines(self._requests)
        self._tenants = Tenants()
        self._waiting = WaitingQueue(policy, self._tenants)
        self._siblings = Siblings(kv.block_size)
        self._running: list[Request] = []
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._max_num_seqs = max_num_seqs
        self._outbox: list[TokenOutput] = []
        self._num_arrived = 0
        self._num_steps = 0
        self._num_step_tokens = 0
        self._num_preemptions = 0
        self._num_finished = 0

    # ---- requests come and go ------------------------------------------------------------------------------------

    def add(self, message: AddRequest, *, held: bool = False) -> Request:
        """Take a request in. A held one stays out of line until `release_hold`."""
        if message.id in self._requests:
            raise ValueError(f"request id {message.id} is in use")
        request = Request(message, seq=self._num_arrived, max_model_len=self._max_model_len, arrival=self._clock())
        self._num_arrived += 1
        self._requests[request.id] = request
        self._tenants.come(request.tenant)
        self._deadlines.add(request)
        if request.num_prompt >= self._max_model_len:
            self._finish(
                request, "error", f"{request.num_prompt} prompt tokens, the limit is {self._max_model_len - 1}"
            )
        elif self._kv.blocks_for(request.max_tokens) > self._kv.pool.num_usable:
            self._finish(request, "error", f"{request.max_tokens} tokens do not fit the KV cache")
        elif not held:
            self._arrive(request)
        return request

    def release_hold(self, request: Request) -> None:
        """What a held request waited for is there."""
        if request.state == "held":
            self._arrive(request)

    def hold(self, request: Request, *, void: bool = False) -> None:
        """Take a request out of the line, and off the device, until `release_hold`.

        void: the token that is being sampled for it is thrown away when it comes.
        """
        if void:
            request.void_epoch = request.num_preemptions
        if request.state == "running":
            self._leave_device(request)
            request.num_preemptions += 1
            request.state = "held"
        elif request.state == "waiting":
            self._waiting.remove(request)
            request.state = "held"

    def abort(self, ids: Iterable[int]) -> None:
        """End these requests now, whatever they are doing; unknown ids are ignored."""
        for id_ in ids:
            if request := self._requests.get(id_):
                self._finish(request, "abort")

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; requests that run keep their blocks."""
        self._kv.pool.forget_all()

    def reject(self, id_: int, error: str) -> None:
        """End a request that could not be taken in, as far as it was."""
        if request := self._requests.get(id_):
            self._finish(request, "error", error)
        else:
            self._outbox.append(TokenOutput(id=id_, token_ids=[], finish_reason="error", error=error))

    def fail(self, request: Request, error: str, param: str | None = None) -> None:
        """End one request because of an error of its own; `param` is the field to blame, if one is."""
        if request.state != "finished":
            self._finish(request, "error", error=error, param=param)

    # ---- the two halves of a step --------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """The next step, or None if no request can run. Costs O(rows in the step)."""
        for request in self._deadlines.due(self._clock()):
            self._finish(request, "abort", "The request waited too long to be begun.", late=True)
        plan = StepPlan(self._num_steps, [], [], [], [], [], [], [])
        shares: list[Share] = []
        backlog = self._backlog() if self._limits else 0
        for limit in self._limits:
            limit.begin(backlog)
        if not (self._tenants.several and self._plan_fairly(plan, shares)):
            budget, preempted = self._plan_running(plan, shares, self._budget)
            if not preempted:
                self._plan_waiting(plan, shares, budget)
        if not shares:
            return None
        for rider in self._riders:
            rider.board(plan)
        self._num_steps += 1
        self._num_step_tokens += sum(plan.counts)
        return Step(plan, shares)

    def commit(self, step: Step, result: StepResult) -> None:
        """Take in what the step sampled. Requests that ended or restarted meanwhile are passed over."""
        sample, scores = 0, result.prompt_logprobs
        for index, share in enumerate(step.shares):
            token, logprobs = None, None
            if share.samples:
                token, logprobs = result.token_ids[sample], result.logprobs.get(sample)
                sample += 1
            if share.request.state == "finished":
                continue
            try:
                if scores and index in scores:
                    self._take_scored(share.request, step.plan.starts[index] + 1, scores[index])
                self._commit_share(share, token, logprobs)
            except Exception as error:
                log.error("request %d could not take its token", share.request.id, exc_info=error)
                self.fail(share.request, f"{type(error).__name__} when its token came")

    def rewind(self, step: Step) -> None:
        """A step, the latest there is, brings no results: its requests stand as before it.

        What became of it on the device is unknown, so their rows are written anew; their blocks stay.
        """
        for rider in self._riders:
            rider.undo(step.plan)
        for share, start in zip(step.shares, step.plan.starts, strict=True):
            request = share.request
            request.num_pending -= share.samples
            if request.state == "running" and share.epoch == request.num_preemptions:
                request.num_computed = start
                request.stale = True

    def add_limit(self, limit: Limit) -> None:
        """A further bound from the next step on."""
        self._limits = (*self._limits, limit)

    def remove_limit(self, limit: Limit) -> None:
        """It bounds nothing any more."""
        self._limits = tuple(other for other in self._limits if other is not limit)

    def take_outputs(self) -> list[TokenOutput]:
        """What happened to requests since the last call."""
        outputs, self._outbox = self._outbox, []
        return outputs

    # ---- what others may ask -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._running) or len(self._waiting) > 0

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        stats = EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._requests) - len(self._running),
            kv_usage=self._kv.pool.usage,
            num_preemptions=self._num_preemptions,
            prefix_queries=self._kv.num_queries,
            prefix_hits=self._kv.num_hits,
            num_steps=self._num_steps,
            num_step_tokens=self._num_step_tokens,
            full=self._is_full,
        )
        for rider in self._riders:
            stats = rider.counted(stats)
        return stats

    @property
    def _is_full(self) -> bool:
        """Whether the next in line waits for a row or for blocks."""
        head = self._waiting.peek()
        return head is not None and (not self._free_rows or head.needs_free > self._kv.pool.num_free)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every block, row and request is accounted for."""
        self._kv.check_integrity(self._requests.values())
        rows = sorted(self._free_rows + [r.row for r in self._requests.values() if r.row != NO_ROW])
        if rows != list(range(self._max_num_seqs)):
            raise RuntimeError(f"rows are lost or doubled: {len(rows)} of {self._max_num_seqs}")
        if self._num_arrived != self._num_finished + len(self._requests):
            raise RuntimeError(
                f"{self._num_arrived} arrived, {self._num_finished} finished, {len(self._requests)} known"
            )
        running = {r.id for r in self._requests.values() if r.state == "running"}
        waiting = {r.id for r in self._requests.values() if r.state == "waiting"}
        if running != {r.id for r in self._running} or waiting != {r.id for r in self._waiting}:
            raise RuntimeError("a request's state differs from the list it is in")

    # ---- planning ------------------------------------------------------------------------------------------------

    def _backlog(self) -> int:
        """Prompt tokens that wait for a step: of those who read, who stand last, and of those who could get a row."""
        tokens = 0
        for request in reversed(self._running):
            if request.want <= 1:
                break
            tokens += request.want
        if self._free_rows and len(self._waiting):
            tokens += self._waiting.num_tokens * min(len(self._free_rows), len(self._waiting)) // len(self._waiting)
        return tokens

    def _plan_fairly(self, plan: StepPlan, shares: list[Share]) -> bool:
        """Serve those who generate, then prompts, the tenant's first that was served least.

        Blocks that a prompt lacks here are taken from nobody. So if nothing at all could run the usual order must.

        Returns whether anything runs.
        """
        self._make_room()
        budget, preempted = self._plan_running(plan, shares, self._budget, prompts=False)
        if preempted:
            return True
        turn = self._waiting.turn
        reading = [request for request in self._running if request.want > 1]
        admitting = True
        while budget > 0:
            request = min(reading, key=turn, default=None)
            head = self._waiting.peek() if admitting else None
            if head is not None and (request is None or turn(head) < turn(request)):
                num_shares = len(shares)
                self._plan_waiting(plan, shares, budget, most=1)
                admitting = len(shares) > num_shares
                budget -= plan.counts[-1] if admitting else 0
                continue
            if request is None:
                break
            reading.remove(request)
            count = self._allowed(request, budget)
            if count > 0 and self._grow(request, count, plan):
                self._run(request, count, plan, shares)
                budget -= count
        return bool(shares)

    def _make_room(self) -> None:
        """If the next in line lacks a row or blocks within its tenant's share, whoever has more than his gives some."""
        while (head := self._waiting.peek()) is not None and not head.num_pending:
            self._kv.look_ahead(head)
            growing = sum(
                request.num_computed == len(request.blocks) * self._kv.block_size for request in self._running
            )
            short = head.needs_free + growing - self._kv.pool.num_free
            if not self._free_rows:
                payer = self._tenants.pays_a_row(head.tenant, self._max_num_seqs)
            elif short > 0:
                total = self._kv.pool.num_usable
                payer = self._tenants.pays_blocks(total, self._running, head.tenant, head.needs_free)
            else:
                return
            if payer is None:
                return
            self._preempt(self._last_of(payer, self._running))

    @staticmethod
    def _last_of(tenant: str, requests: Sequence[Request]) -> Request:
        return next(request for request in reversed(requests) if request.tenant == tenant)

    def _victim(self, request: Request, rest: Sequence[Request]) -> Request:
        """Who pays for the blocks that a running request lacks: somebody from the rest of the line, mostly the last.

        Where tenants share the blocks, the last of the one that is above its share, if this one's is not.
        """
        if self._tenants.several:
            payer = self._tenants.pays_blocks(self._kv.pool.num_usable, self._running, request.tenant, 1)
            if payer is not None and any(other.tenant == payer for other in rest[1:]):
                return self._last_of(payer, rest)
        return rest[-1]

    def _grow(self, request: Request, count: int, plan: StepPlan) -> bool:
        """Give a running request the blocks for so many more tokens, if there are as many."""
        blocks = self._kv.grow(request, request.num_computed + count)
        if blocks is not None and request.stale:
            self._tell_row(request, plan)
        elif blocks:
            plan.new_blocks.append(NewBlocks(request.row, len(request.blocks) - len(blocks), blocks))
        return blocks is not None

    def _plan_running(
        self, plan: StepPlan, shares: list[Share], budget: int, *, prompts: bool = True
    ) -> tuple[int, bool]:
        """Serve running requests, best first. When blocks run out the last in line pays; it has no share yet.

        prompts: also those that have more than one token to run.

        Returns the budget that is left, and whether any request was preempted.
        """
        preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            request = self._running[index]
            try:
                count = self._allowed(request, budget) if prompts or request.want <= 1 else 0
                if count > 0:
                    if not self._grow(request, count, plan):
                        self._preempt(self._victim(request, self._running[index:]))
                        preempted = True
                        continue
                    self._run(request, count, plan, shares)
                    budget -= count
            except Exception as error:  # noqa: BLE001 - it ends this request, and nobody else
                self._give_up(request, error, plan, shares)
            else:
                index += 1
        return budget, preempted

    def _plan_waiting(self, plan: StepPlan, shares: list[Share], budget: int, most: int | None = None) -> None:
        """Admit waiting requests, best first and at most so many, until one does not fit: nobody overtakes."""
        last = None if most is None else len(shares) + most
        while budget > 0 and self._free_rows and len(shares) != last:
            request = self._waiting.peek()
            if request is None or request.num_pending or request.needs_free > self._kv.pool.num_free:
                return
            try:
                count = self._admit(request, plan, budget)
                if count == 0:
                    return
                self._run(request, count, plan, shares)
            except Exception as error:  # noqa: BLE001 - it ends this request, and nobody else
                self._give_up(request, error, plan, shares)
            else:
                budget -= count

    def _admit(self, request: Request, plan: StepPlan, budget: int) -> int:
        """Give a waiting request its blocks and a row; returns how many tokens it runs, 0 if it must wait on."""
        prefix = self._kv.match(request)
        request.num_computed = len(prefix) * self._kv.block_size
        count = self._allowed(request, budget)
        if count == 0 or not self._kv.admit(request, prefix, request.num_computed + count):
            request.num_computed = 0
            return 0
        self._waiting.remove(request)
        insort(self._running, request, key=self._policy)
        request.state = "running"
        request.row = self._free_rows.pop()
        self._tenants.take_row(request.tenant)
        if request.started is None:
            request.started = self._clock()
        self._tell_row(request, plan)
        return count

    @staticmethod
    def _tell_row(request: Request, plan: StepPlan) -> None:
        """The device learns all of a row."""
        request.stale = False
        plan.new_rows.append(
            NewRow(
                row=request.row,
                tokens=request.tokens.tobytes(),
                num_prompt=request.num_prompt,
                num_computed=request.num_computed,
                params=request.params,
                stop_token_ids=sorted(request.stop_token_ids),
            )
        )
        plan.new_blocks.append(NewBlocks(request.row, 0, list(request.blocks)))

    def _give_up(self, request: Request, error: Exception, plan: StepPlan, shares: list[Share]) -> None:
        """A request that cannot be planned: take its traces, the latest ones, out of the plan, and end it."""
        log.error("request %d could not be planned", request.id, exc_info=error)
        shares[:] = [share for share in shares if share.request is not request]
        for values in (plan.rows, plan.starts, plan.counts):
            del values[len(shares) :]
        plan.samples[:] = [index for index in plan.samples if index < len(shares)]
        plan.new_rows[:] = [new for new in plan.new_rows if new.row != request.row]
        plan.new_blocks[:] = [new for new in plan.new_blocks if new.row != request.row]
        if request.state == "waiting" and request.blocks:
            self._kv.release(request)
        self.fail(request, f"{type(error).__name__} when it was planned")

    def _allowed(self, request: Request, budget: int) -> int:
        want = request.want
        count = min(want, budget)
        for limit in self._limits:
            count = min(count, limit.allow(request, count))
        return count if count == want or self.chunked_prefill else 0

    def _run(self, request: Request, count: int, plan: StepPlan, shares: list[Share]) -> None:
        start, end = request.num_computed, request.num_computed + count
        samples = end == request.known + request.num_pending
        request.num_computed = end
        request.num_pending += samples
        self._tenants.run(request.tenant, count)
        for limit in self._limits:
            limit.take(request, count)
        if samples:
            plan.samples.append(len(plan.rows))
        plan.rows.append(request.row)
        plan.starts.append(start)
        plan.counts.append(count)
        shares.append(Share(request, end, samples, request.num_preemptions))

    def _preempt(self, request: Request) -> None:
        """Completion without output: forget blocks and row, go back in line. Pending tokens still arrive."""
        self._leave_device(request)
        request.num_preemptions += 1
        self._num_preemptions += 1
        self._enqueue(request)

    def _arrive(self, request: Request) -> None:
        """Nothing outside of the scheduler holds the request any more; a sibling may."""
        if not self._siblings.holds(request):
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        request.state = "waiting"
        self._waiting.push(request)

    def _leave_device(self, request: Request) -> None:
        """A running request gives back its blocks and its row. Steps in flight come first on the device."""
        del self._running[bisect_left(self._running, self._policy(request), key=self._policy)]
        self._kv.release(request)
        self._free_rows.append(request.row)
        self._tenants.give_row(request.tenant)
        request.row = NO_ROW
        request.num_computed = 0
        for limit in self._limits:
            limit.drop(request)

    # ---- committing ----------------------------------------------------------------------------------------------

    def _commit_share(self, share: Share, token: int | None, logprobs: TokenLogprobs | None) -> None:
        request = share.request
        if token is not None:
            request.num_pending -= 1
            if share.epoch == request.void_epoch:
                return
            request.tokens.append(token)
        if request.state == "running" and share.epoch == request.num_preemptions:
            self._kv.remember(request, share.end)
            if request.group >= 0:
                for sibling in self._siblings.advanced(request, share.end):
                    self._enqueue(sibling)
        if token is not None:
            reason = request.ends_with(token)
            self._emit(request, [token], [logprobs] if logprobs else None, reason)
            if reason:
                self._retire(request, reason)

    def _take_scored(self, request: Request, first: int, scored: list[TokenLogprobs]) -> None:
        """Log-probabilities of prompt tokens from `first` on; those that came before a preemption come but once."""
        new = scored[request.num_scored - first :]
        if new:
            request.num_scored += len(new)
            self._outbox.append(TokenOutput(id=request.id, token_ids=[], prompt_logprobs=new))

    def _emit(
        self,
        request: Request,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        reason: FinishReason | None,
        error: str | None = None,
        param: str | None = None,
        late: bool = False,
    ) -> None:
        first = request.num_output == len(token_ids)
        self._outbox.append(
            TokenOutput(
                id=request.id,
                token_ids=token_ids,
                finish_reason=reason,
                num_cached_tokens=request.num_cached if first else 0,
                logprobs=logprobs,
                queued_s=request.started - request.arrival if first and request.started is not None else 0.0,
                error=error,
                param=param,
                late=late,
            )
        )

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        error: str | None = None,
        param: str | None = None,
        late: bool = False,
    ) -> None:
        """End a request from outside of a step."""
        self._emit(request, [], None, reason, error, param, late)
        self._retire(request, reason)

    def _retire(self, request: Request, reason: FinishReason) -> None:
        """The one end of every request."""
        if request.state == "waiting":
            self._waiting.remove(request)
        elif request.state == "running":
            self._leave_device(request)
        request.state = "finished"
        request.finish_reason = reason
        del self._requests[request.id]
        self._tenants.go(request.tenant)
        self._num_finished += 1
        for sibling in self._siblings.left(request):
            self._enqueue(sibling)
