"""Steps that fail, in random schedules on a device made of dictionaries: who is to blame ends, all others are equal.

The same life of an engine as in test_simulation.py, on a device that fails in all the ways there are: with a certain
request in the step, by chance, for want of memory, before the forward or after it, in the sampling, when the results
are fetched, and with a request that the scheduler itself cannot plan.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from device import FakeWorker, expected_output
from test_simulation import Schedule

from quire.engine.core import MAX_FAILED, BrokenEngine, EngineCore
from quire.engine.executors import InlineExecutor, ThreadExecutor
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, StepPlan, pack_ids
from quire.params import SamplingParams

SCHEDULES = int(os.environ.get("QUIRE_TEST_SCHEDULES", "6000")) // 4


class NoMemory(Exception):
    """As a device has it."""


class FailingWorker(FakeWorker):
    """Args:
    random: when to fail.
    chance: how often a step of several requests fails that has no bad one.
    """

    def __init__(self, random: Random, chance: float, **sizes: int) -> None:
        super().__init__(**sizes)
        self._random = random
        self._chance = chance
        self._bad_rows: set[int] = set()
        self._where: str | None = None
        self.num_failed = 0
        self.num_after_failure = 0
        self._failed = False

    def forward(self, plan: StepPlan) -> None:
        self.num_after_failure += self._failed
        self.num_steps = plan.step  # those that failed count for the scheduler, too
        for new in plan.new_rows:
            (self._bad_rows.add if new.params.seed == 13 else self._bad_rows.discard)(new.row)
        bad = not self._bad_rows.isdisjoint(plan.rows)
        places = ["before", "after", "sample", "late", "wait"]
        by_chance = len(plan.rows) > 1 and self._random.random() < self._chance
        self._where = self._random.choice(places) if bad or by_chance else None
        self._fail("before", bad)
        super().forward(plan)
        self._fail("after", bad)

    def _fail(self, where: str, bad: bool) -> None:
        if self._where == where:
            self._where = None
            self.num_failed += 1
            self._failed = True
            raise ValueError("a bad request") if bad or self._random.random() < 0.7 else NoMemory

    def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> object:
        bad = not self._bad_rows.isdisjoint(plan.rows)
        self._fail("sample", bad)
        pending = super().sample(plan, masks)
        self._fail("late", bad)
        return _Pending(self, pending, self._where == "wait", bad)

    def judge(self, error: Exception) -> str:
        self._where = None
        self._failed = False
        return "memory" if isinstance(error, NoMemory) else "step"


class _Pending:
    def __init__(self, worker: FailingWorker, inner: object, fails: bool, bad: bool) -> None:
        self._inner, self._fails, self._bad, self._worker = inner, fails, bad, worker

    def wait(self) -> object:
        if self._fails:
            self._worker.num_failed += 1
            raise ValueError("the results are lost")
        return self._inner.wait()  # type: ignore[attr-defined]


class FailingSchedule(Schedule):
    """A life with failures. Ids of bad requests are known beforehand."""

    def __init__(self, seed: int, *, threaded: bool) -> None:
        super().__init__(seed, threaded=threaded)
        rng = Random(seed + 1)
        old = self.worker
        self.worker = FailingWorker(
            rng,
            rng.choice([0.0, 0.1, 0.3]),
            num_rows=len(old.tokens),
            num_blocks=len(old.cache) // old.block_size,
            block_size=old.block_size,
            max_tokens=old.max_tokens,
        )
        self.executor._worker = self.worker
        self.bad: set[int] = set()
        self.unplannable: set[int] = set()
        self.bad_share = rng.choice([0.0, 0.1, 0.5])
        self._choose = rng
        add = self.scheduler.add
        self.scheduler.add = self._marking(add)  # type: ignore[method-assign]
        run = self.scheduler._run

        def failing_run(request: object, *args: object) -> None:
            run(request, *args)  # type: ignore[arg-type]
            if request.id in self.unplannable:  # type: ignore[attr-defined]
                raise ZeroDivisionError("when all of it is planned")

        self.scheduler._run = failing_run  # type: ignore[method-assign]

    def _check(self, aborted: set[int]) -> None:
        for id_ in self.bad | self.unplannable:
            message = self.messages.pop(id_)
            tokens, _ = expected_output(
                message, constrained=self.grammar.constrained.get(id_), max_model_len=self.max_model_len
            )
            assert self.finished[id_] == 1 and self.reasons[id_] in ("error", "abort"), self.reasons[id_]
            assert self.outputs[id_] == tokens[: len(self.outputs[id_])]
        super()._check(aborted)

    def _marking(self, add):
        def marked(message: AddRequest, **more):
            if self._choose.random() < self.bad_share:
                if self._choose.random() < 0.2:
                    self.unplannable.add(message.id)
                else:
                    self.bad.add(message.id)
                    message.params.seed = 13
            return add(message, **more)

        return marked


@pytest.mark.parametrize("chunk", range(6))
def test_only_who_is_to_blame_ends(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num_failed = num_bad = 0
    for seed in range(chunk * SCHEDULES // 6, (chunk + 1) * SCHEDULES // 6):
        schedule = FailingSchedule(seed, threaded=seed % 10 == 0)
        try:
            schedule.run(Random(seed).randint(1, 12))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        assert not schedule.worker.num_after_failure, "a step ran on the tables that a failed one left"
        num_failed += schedule.worker.num_failed
        num_bad += len(schedule.bad)
    assert num_failed > num_bad > SCHEDULES / 40, "nothing was tested"


def core_with(worker: object, num_requests: int, threaded: bool = False) -> EngineCore:
    scheduler = Scheduler(KVManager(BlockPool(65), 4), max_num_seqs=8, max_num_batched_tokens=64, max_model_len=16)
    core = EngineCore(scheduler, (ThreadExecutor if threaded else InlineExecutor)(worker))  # type: ignore[arg-type]
    for id_ in range(num_requests):
        core.add(AddRequest(id_, pack_ids([1, 2, 3]), SamplingParams(max_tokens=4, seed=id_)))
    return core


def sizes() -> dict[str, int]:
    return {"num_rows": 8, "num_blocks": 65, "block_size": 4, "max_tokens": 64}


def test_a_bad_request_is_found_in_few_steps() -> None:
    class Worker(FailingWorker):
        def judge(self, error: Exception) -> str:
            return "step"

    worker = Worker(Random(0), 0.0, **sizes())
    core = core_with(worker, 5)
    core.add(AddRequest(13, pack_ids([1, 2, 3]), SamplingParams(max_tokens=4, seed=13)))
    finished = {}
    while core.busy:
        finished |= {o.id: o.finish_reason for o in core.step().outputs if o.finish_reason}
    assert finished == {**dict.fromkeys(range(5), "length"), 13: "error"}
    assert worker.num_failed <= 6, "of 6, 3, 2, 1 requests, and of a step that was launched meanwhile"


def test_a_lost_device_is_not_tried_again() -> None:
    class Lost(FailingWorker):
        def judge(self, error: Exception) -> str:
            return "device"

    core = core_with(Lost(Random(0), 1.0, **sizes()), 3)
    with pytest.raises(BrokenEngine, match="device is lost"):
        for _ in range(5):
            core.step()


def test_where_nothing_goes_well_the_engine_ends() -> None:
    class Never(FailingWorker):
        def forward(self, plan: StepPlan) -> None:
            self.num_failed += 1
            raise ValueError("never")

    worker = Never(Random(0), 1.0, **sizes())
    core = core_with(worker, 60)
    with pytest.raises(BrokenEngine, match="one after the other") as found:
        while True:
            core.step()
    assert found.value.detail == "ValueError: never" and "never" not in found.value.message
    assert worker.num_failed == MAX_FAILED


def test_a_step_without_memory_is_tried_again_with_half() -> None:
    class Small(FailingWorker):
        seen: list[int] = []

        def forward(self, plan: StepPlan) -> None:
            self.seen.append(sum(plan.counts))
            if sum(plan.counts) > 20:
                raise NoMemory
            FakeWorker.forward(self, plan)

        def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> object:
            return FakeWorker.sample(self, plan, masks)

    worker = Small(Random(0), 0.0, **sizes())
    worker.num_steps = 0
    scheduler = Scheduler(KVManager(BlockPool(65), 4), max_num_seqs=8, max_num_batched_tokens=32, max_model_len=64)
    core = EngineCore(scheduler, InlineExecutor(worker))  # type: ignore[arg-type]
    core.add(AddRequest(0, pack_ids(range(50)), SamplingParams(max_tokens=2)))
    worker.num_steps = 1  # the first step fails before it counts
    reasons = []
    while core.busy:
        reasons += [o.finish_reason for o in core.step().outputs if o.finish_reason]
    assert reasons == ["length"]
    assert worker.seen[:3] == [32, 16, 16] and max(worker.seen[1:]) == 16
