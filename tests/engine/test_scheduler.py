"""The scheduler's decisions, one at a time: who runs, how much, who waits, who pays."""

from __future__ import annotations

import pytest

from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.limits import LongPromptCap, MixedStep
from quire.engine.scheduler.policy import by_priority, fcfs
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.messages import AddRequest, StepResult, TokenOutput, pack_ids
from quire.params import SamplingParams

END = 9


class Bench:
    """A scheduler whose device answers 1, 2, 3, ... at once."""

    def __init__(self, *, blocks: int = 100, block_size: int = 4, rows: int = 8, budget: int = 16, **options) -> None:
        self.pool = BlockPool(blocks)
        options = {"policy": fcfs, "max_model_len": 200, **options}
        caching = options.pop("prefix_caching", False)
        manager = KVManager(self.pool, block_size, prefix_caching=caching)
        self.scheduler = Scheduler(manager, max_num_seqs=rows, max_num_batched_tokens=budget, **options)
        self.outputs: list[TokenOutput] = []
        self.next_id = 0

    def add(self, prompt: int, output: int = 50, priority: int = 0, stop: list[int] = (), **params) -> int:
        id_, self.next_id = self.next_id, self.next_id + 1
        tokens = [100 + id_] * prompt
        params = SamplingParams(max_tokens=output, **params)
        self.scheduler.add(AddRequest(id_, pack_ids(tokens), params, list(stop), priority))
        return id_

    def plan(self) -> dict[int, int] | None:
        """Plan and commit one step: request id → tokens it ran."""
        step = self.scheduler.plan()
        return self.commit(step) if step else None

    def commit(self, step: Step, token: int = 1) -> dict[int, int]:
        shares = {s.request.id: n for s, n in zip(step.shares, step.plan.counts, strict=True)}
        self.scheduler.commit(step, StepResult([token] * len(step.plan.samples)))
        self.outputs += self.scheduler.take_outputs()
        self.scheduler.check_integrity()
        return shares


def test_decodes_come_before_prompts_and_prompts_are_cut_to_the_budget() -> None:
    bench = Bench(budget=16)
    first, second = bench.add(10), bench.add(30)
    assert bench.plan() == {first: 10, second: 6}
    assert bench.plan() == {first: 1, second: 15}
    assert bench.plan() == {first: 1, second: 9}
    assert bench.plan() == {first: 1, second: 1}


def test_without_chunks_a_prompt_waits_until_it_fits() -> None:
    bench = Bench(budget=16, chunked_prefill=False)
    first, second = bench.add(10), bench.add(8)
    assert bench.plan() == {first: 10}
    assert bench.plan() == {first: 1, second: 8}


def test_long_prompt_cap_leaves_room_for_others() -> None:
    bench = Bench(budget=16, limits=(LongPromptCap(6),))
    long, short = bench.add(30), bench.add(5)
    assert bench.plan() == {long: 6, short: 5}


def test_prompts_are_spread_over_steps_in_which_others_generate() -> None:
    bench = Bench(budget=64, limits=(MixedStep((6, 12, 24), patience=60, alone=50),))
    first, second = bench.add(10), bench.add(30)
    assert bench.plan() == {first: 10, second: 30}, "nobody generates: the whole budget"
    third, fourth = bench.add(5), bench.add(40)
    assert bench.plan() == {first: 1, second: 1, third: 5, fourth: 17}, "45 of 60 wait: 6 / (1 - 45 / 60) = 24"
    assert bench.plan() == {first: 1, second: 1, third: 1, fourth: 9}, "23 wait: 6 / (1 - 23 / 60) - 3, so 12"
    fifth = bench.add(60)
    assert bench.plan() == {first: 1, second: 1, third: 1, fourth: 14, fifth: 7}, "the whole patience: the largest"
    bench.scheduler.abort([first, second, third, fourth])
    assert bench.plan() == {fifth: 50}, "nobody generates any more"


def test_prompts_go_on_beside_any_number_that_generates() -> None:
    bench = Bench(rows=16, budget=64, limits=(MixedStep((2, 4), patience=1000, alone=64),))
    running = [bench.add(2) for _ in range(8)]
    bench.plan()
    late = bench.add(9)
    assert bench.plan() == dict.fromkeys(running, 1) | {late: 2}


def test_nobody_overtakes_the_first_in_line() -> None:
    bench = Bench(blocks=11, budget=64)
    running, large, small = bench.add(24, 10), bench.add(24, 10), bench.add(4, 10)
    assert bench.plan() == {running: 24}, "the second needs 6 of 4 blocks; the third would fit, but waits"
    bench.scheduler.abort([running])
    assert bench.plan() == {large: 24, small: 4}


def test_rows_bound_the_running() -> None:
    bench = Bench(rows=2, budget=64)
    ids = [bench.add(3, output=2) for _ in range(3)]
    assert set(bench.plan()) == set(ids[:2])
    assert set(bench.plan()) == set(ids[:2])
    assert set(bench.plan()) == {ids[2]}


def test_priority_order() -> None:
    bench = Bench(rows=1, policy=by_priority)
    late, early, also_early = bench.add(3, 1, priority=5), bench.add(3, 1, priority=-1), bench.add(3, 1, priority=-1)
    assert [list(bench.plan()) for _ in range(3)] == [[early], [also_early], [late]]


@pytest.mark.parametrize(("policy", "victim"), [(fcfs, 1), (by_priority, 0)])
def test_the_last_in_line_pays_when_blocks_run_out(policy, victim: int) -> None:
    bench = Bench(blocks=5, block_size=4, policy=policy)
    bench.add(7, 9, priority=1)
    bench.add(7, 9, priority=0)
    while bench.scheduler.stats().num_preemptions == 0:
        ran = bench.plan()
    assert victim not in ran and len(ran) == 1
    assert bench.scheduler.stats().num_waiting == 1
    while (ran := bench.plan()) and victim not in ran:
        if sum(len(o.token_ids) for o in bench.outputs if o.id != victim) > 5:
            bench.scheduler.abort([1 - victim])
    assert ran[victim] == 7 + sum(len(o.token_ids) for o in bench.outputs[:-1] if o.id == victim), "all is recomputed"


def test_no_step_is_spent_after_the_length_limit() -> None:
    """The next step is planned before the last token is seen; the limit is certain all the same."""
    bench = Bench()
    bench.add(5, output=3)
    steps, inflight = 0, None
    while True:
        step = bench.scheduler.plan()
        if inflight:
            bench.commit(inflight)
        if not (step or inflight):
            break
        steps += step is not None
        inflight = step
    assert steps == 3 and bench.outputs[-1].finish_reason == "length"


def test_a_stop_token_seen_late_costs_one_spare_share_that_is_dropped() -> None:
    bench = Bench()
    id_ = bench.add(5, stop=[END])
    first = bench.scheduler.plan()
    second = bench.scheduler.plan()
    bench.commit(first, token=END)
    assert bench.outputs[-1].finish_reason == "stop"
    bench.commit(second, token=1)
    assert [o.token_ids for o in bench.outputs if o.id == id_] == [[END]]


def test_several_steps_in_flight_commit_in_order() -> None:
    """As a pipeline of stages will have it: planning runs three steps ahead."""
    bench = Bench(blocks=9, block_size=4, prefix_caching=True)
    ids = [bench.add(6, output=9) for _ in range(3)]
    inflight: list[Step] = []
    for _ in range(400):
        if step := bench.scheduler.plan():
            inflight.append(step)
        if len(inflight) == 3 or not step:
            if not inflight:
                break
            bench.commit(inflight.pop(0))
    assert bench.scheduler.stats().num_preemptions > 0
    for id_ in ids:
        assert sum(len(o.token_ids) for o in bench.outputs if o.id == id_) == 9
        assert [o.finish_reason for o in bench.outputs if o.id == id_ and o.finish_reason] == ["length"]
    assert bench.pool.num_free == bench.pool.num_usable


def test_abort_in_every_state() -> None:
    bench = Bench(rows=1)
    running, waiting = bench.add(20), bench.add(5)
    held = bench.scheduler.add(AddRequest(77, pack_ids([1]), SamplingParams()), held=True)
    inflight = bench.scheduler.plan()
    bench.scheduler.abort([running, waiting, held.id, 12345])
    bench.commit(inflight)
    assert sorted(o.id for o in bench.outputs if o.finish_reason == "abort") == [running, waiting, 77]
    assert bench.plan() is None and bench.pool.num_free == bench.pool.num_usable
    bench.scheduler.release_hold(held)
    assert bench.plan() is None


def test_what_cannot_fit_is_refused_and_nobody_else_notices() -> None:
    bench = Bench(blocks=4, block_size=4, max_model_len=100)
    bench.add(100)
    bench.add(10, output=50)
    good = bench.add(5, output=2)
    assert bench.plan() == {good: 5}
    assert [(o.id, o.finish_reason) for o in bench.outputs[:2]] == [(0, "error"), (1, "error")]
    assert "100 prompt tokens" in bench.outputs[0].error and "60 tokens" in bench.outputs[1].error


def test_an_id_in_use_is_refused() -> None:
    bench = Bench()
    bench.add(3)
    with pytest.raises(ValueError, match="in use"):
        bench.scheduler.add(AddRequest(0, pack_ids([1]), SamplingParams()))
