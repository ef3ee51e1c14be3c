"""Hypothesis drives pool and scheduler with any order of calls; invariants hold after each."""

from __future__ import annotations

import os

import hypothesis.strategies as st
from device import VOCAB, FakeWorker, expected_output
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.engine.core import EngineCore
from quire.engine.executors import InlineExecutor
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.policy import POLICIES
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, pack_ids
from quire.params import SamplingParams

ROWS = 3
MAX_MODEL_LEN = 40


class EngineMachine(RuleBasedStateMachine):
    """add, hold, abort, step, reset of the prefix cache, in any order."""

    @initialize(
        block_size=st.sampled_from([1, 4, 16]),
        spare=st.integers(0, 12),
        budget=st.sampled_from([1, 5, 64]),
        policy=st.sampled_from(["fcfs", "priority"]),
    )
    def start(self, block_size: int, spare: int, budget: int, policy: str) -> None:
        num_blocks = 1 + -(-MAX_MODEL_LEN // block_size) + spare
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            KVManager(self.pool, block_size),
            max_num_seqs=ROWS,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            policy=POLICIES[policy],
        )
        worker = FakeWorker(num_rows=ROWS, num_blocks=num_blocks, block_size=block_size, max_tokens=budget)
        self.core = EngineCore(self.scheduler, InlineExecutor(worker))
        self.messages: dict[int, AddRequest] = {}
        self.outputs: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.held: list = []

    @rule(
        head=st.integers(0, 2),
        tail=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
        most=st.integers(1, 25),
        priority=st.integers(0, 2),
        hold=st.booleans(),
        siblings=st.integers(0, 3),
        scored=st.booleans(),
        tenant=st.sampled_from(["", "", "a", "b"]),
    )
    def add(
        self,
        head: int,
        tail: list[int],
        most: int,
        priority: int,
        hold: bool,
        siblings: int,
        scored: bool,
        tenant: str,
    ) -> None:
        prompt = ([head] * 17 + tail)[: MAX_MODEL_LEN - 1]
        group = len(self.messages) if siblings else -1
        for sibling in range(siblings + 1):
            params = SamplingParams(max_tokens=most, prompt_logprobs=0 if scored and not sibling else None)
            id_ = len(self.messages)
            message = AddRequest(id_, pack_ids(prompt), params, [1, 2, 3], priority, "", group, tenant=tenant)
            self.messages[id_] = message
            request = self.scheduler.add(message, held=hold)
            if hold:
                self.held.append(request)

    @precondition(lambda self: getattr(self, "held", None))
    @rule(data=st.data())
    def release_hold(self, data: st.DataObject) -> None:
        self.scheduler.release_hold(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: getattr(self, "messages", None))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort([data.draw(st.sampled_from(sorted(self.messages)))])

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._take()

    @rule()
    def reset_prefix_cache(self) -> None:
        self.pool.forget_all()

    def _take(self) -> None:
        for output in self.core.step().outputs:
            assert output.id not in self.reasons, "something after the finish"
            self.outputs.setdefault(output.id, []).extend(output.token_ids)
            if output.finish_reason:
                self.reasons[output.id] = output.finish_reason

    @invariant()
    def accounts_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert 0 <= self.pool.num_free <= self.pool.num_usable

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for request in self.held:
            self.scheduler.release_hold(request)
        for _ in range(5000):
            if not self.core.busy:
                break
            self._take()
        self._take()
        assert set(self.reasons) == set(self.messages), "a request never ended"
        assert self.pool.num_free == self.pool.num_usable
        for id_, message in self.messages.items():
            tokens, reason = expected_output(message, constrained=None, max_model_len=MAX_MODEL_LEN)
            if self.reasons[id_] != "abort":
                assert (self.outputs[id_], self.reasons[id_]) == (tokens, reason)


EngineMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("QUIRE_TEST_EXAMPLES", "300")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestEngineMachine = EngineMachine.TestCase
