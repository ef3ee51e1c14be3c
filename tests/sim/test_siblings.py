"""n candidates of one prompt: the prompt runs once, whatever the cache is set to."""

from __future__ import annotations

import pytest
from device import FakeWorker, expected_output

from quire.engine.core import EngineCore
from quire.engine.executors import InlineExecutor
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, pack_ids
from quire.params import SamplingParams

BLOCK = 8


class Engine:
    """A small engine that counts the tokens it runs."""

    def __init__(self, *, prefix_caching: bool, rows: int = 8, budget: int = 64, num_blocks: int = 200) -> None:
        self.scheduler = Scheduler(
            KVManager(BlockPool(num_blocks), BLOCK, prefix_caching=prefix_caching),
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=256,
        )
        worker = FakeWorker(num_rows=rows, num_blocks=num_blocks, block_size=BLOCK, max_tokens=budget)
        self.core = EngineCore(self.scheduler, InlineExecutor(worker))
        self.tokens: dict[int, list[int]] = {}

    def run(self, *messages: AddRequest) -> None:
        for message in messages:
            self.scheduler.add(message)
        self.finish()

    def finish(self) -> None:
        while self.core.busy:
            self.step()
        self.step()
        self.scheduler.check_integrity()

    def step(self) -> None:
        for output in self.core.step().outputs:
            self.tokens.setdefault(output.id, []).extend(output.token_ids)

    @property
    def num_run(self) -> int:
        return self.scheduler.stats().num_step_tokens


def group_of(count: int, length: int, *, first: int = 0, most: int = 5, **params: object) -> list[AddRequest]:
    prompt = pack_ids([(first + i) % 50 for i in range(length)])
    return [
        AddRequest(first + i, prompt, SamplingParams(max_tokens=most), [], 0, "", first)
        if i
        else AddRequest(first, prompt, SamplingParams(max_tokens=most, **params), [], 0, "", first)
        for i in range(count)
    ]


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 100, 150])
@pytest.mark.parametrize("budget", [8, 64])
def test_a_prompt_runs_once(prefix_caching: bool, rows: int, length: int, budget: int) -> None:
    engine = Engine(prefix_caching=prefix_caching, rows=rows, budget=budget)
    messages = group_of(6, length)
    engine.run(*messages)
    rest = length - (length - 1) // BLOCK * BLOCK  # what each of the others runs of its last block: 1..BLOCK tokens
    outputs = 6 * 4  # the fifth token of each is sampled and never run
    spare = 6  # a request that ended may be in one step more
    least = length + 5 * rest + outputs
    assert 1 <= rest <= BLOCK and least <= engine.num_run <= least + spare
    for message in messages:
        assert engine.tokens[message.id] == expected_output(message, constrained=None, max_model_len=256)[0]


def test_without_a_group_and_a_cache_it_runs_each_time() -> None:
    """The count above can fail."""
    engine = Engine(prefix_caching=False)
    prompt = pack_ids(range(50))
    engine.run(*(AddRequest(i, prompt, SamplingParams(max_tokens=1), []) for i in range(6)))
    assert engine.num_run >= 6 * 50


def test_groups_do_not_share_with_each_other_where_there_is_no_cache() -> None:
    engine = Engine(prefix_caching=False)
    engine.run(*group_of(2, 50, most=1))
    before = engine.num_run
    same = group_of(2, 50, most=1)
    engine.run(*(AddRequest(10 + m.id, m.prompt, m.params, [], 0, "", 10) for m in same))
    assert engine.num_run - before == before


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("victims", [[0], [1], [0, 1], [0, 1, 2, 3]])
def test_when_the_first_is_aborted_the_next_goes_on(steps: int, victims: list[int]) -> None:
    engine = Engine(prefix_caching=True, budget=16)
    messages = group_of(4, 60)
    for message in messages:
        engine.scheduler.add(message)
    for _ in range(steps):
        engine.step()
    engine.scheduler.abort(victims)
    engine.finish()
    for message in messages:
        if message.id not in victims:
            assert engine.tokens[message.id] == expected_output(message, constrained=None, max_model_len=256)[0]
    assert engine.num_run <= 60 + 16 * (steps + 1) + 4 * (8 + 5)


def test_a_scored_prompt_is_whole_before_its_siblings_begin() -> None:
    engine = Engine(prefix_caching=True, budget=3)
    messages = group_of(3, 7, prompt_logprobs=0)
    for message in messages:
        engine.scheduler.add(message)
    scored = 0
    while engine.core.busy:
        for output in engine.core.step().outputs:
            scored += len(output.prompt_logprobs or ())
            assert not output.token_ids or scored == 6
    assert scored == 6


def test_salts_never_share_and_equal_ones_do() -> None:
    engine = Engine(prefix_caching=True)
    prompt = pack_ids(range(50))

    def ran(id_: int, salt: str) -> int:
        before = engine.num_run
        engine.run(AddRequest(id_, prompt, SamplingParams(max_tokens=1), [], 0, salt))
        return engine.num_run - before

    assert [ran(i, salt) for i, salt in enumerate(["", "a", "b", "a", "", "b", "c"])] == [50, 50, 50, 2, 2, 2, 50]


def test_a_prompt_may_be_told_not_to_read_the_cache() -> None:
    engine = Engine(prefix_caching=True)
    prompt = pack_ids(range(50))
    for id_, params in enumerate(
        [
            SamplingParams(max_tokens=1),
            SamplingParams(max_tokens=1, skip_reading_prefix_cache=True),
            SamplingParams(max_tokens=1, prompt_logprobs=0),
        ]
    ):
        before = engine.num_run
        engine.run(AddRequest(id_, prompt, params, []))
        assert engine.num_run - before == 50
