"""The whole engine against a fake device: random schedules, each output equal to a sequential reference.

Every schedule draws its own sizes: block size, pool (often barely larger than one request, so that requests preempt
each other), token budget, rows, policy, limits, prompts from a tree of prefixes, tenants, deadlines, masks, holds and
aborts.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter

import pytest
from device import PLACEHOLDER, VOCAB, FakeGrammar, FakeWorker, expected_output, expected_scores

from quire.engine.core import EngineCore
from quire.engine.executors import InlineExecutor, ThreadExecutor
from quire.engine.kv.hashing import chain
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.encoder import EncoderBudget
from quire.engine.scheduler.limits import LongPromptCap, MixedStep
from quire.engine.scheduler.policy import POLICIES
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, Outputs, Picture, TokenLogprobs, TokenOutput, pack_ids
from quire.params import SamplingParams

SCHEDULES = int(os.environ.get("QUIRE_TEST_SCHEDULES", "6000"))
CHUNKS = 12
MOST_PICTURES = 3


def weak_hash(parent: bytes, token_bytes: bytes) -> bytes:
    """A digest of 4 bits: nearly every lookup collides."""
    return bytes([chain(parent, token_bytes)[0] & 0xF])


class PipelinedCore:
    """The loop with more steps in flight, as a pipeline of several devices will have it."""

    def __init__(self, scheduler: Scheduler, executor: InlineExecutor, depth: int) -> None:
        self._scheduler, self._executor, self._depth = scheduler, executor, depth
        self._inflight = []

    @property
    def busy(self) -> bool:
        return bool(self._inflight) or self._scheduler.has_work

    def step(self) -> Outputs:
        step = self._scheduler.plan()
        if step:
            self._executor.forward(step.plan)
            self._inflight.append((step, self._executor.sample(step.plan, {})))
        if self._inflight and (len(self._inflight) > self._depth or not step):
            previous, pending = self._inflight.pop(0)
            self._scheduler.commit(previous, pending.wait())
        return Outputs(self._scheduler.take_outputs(), self._scheduler.stats())


class Schedule:
    """One random life of an engine."""

    def __init__(self, seed: int, *, threaded: bool = False, depth: int = 1) -> None:
        self.random = rng = random.Random(seed)
        self.block_size = rng.choice([1, 2, 3, 4, 8, 16])
        self.max_model_len = rng.randint(4, 60)
        longest = -(-self.max_model_len // self.block_size)
        num_blocks = 1 + longest + rng.choice([0, 0, 1, 2, longest, 6 * longest])
        budget = rng.choice([1, 3, 8, 20, 64])
        rows = rng.choice([1, 2, 4, 16])
        chunked = rng.random() < 0.8
        if not chunked:
            budget = max(budget, self.max_model_len)
        limits = (LongPromptCap(rng.randint(1, 10)),) if chunked and rng.random() < 0.2 else ()
        if chunked and rng.random() < 0.3:
            limits += (
                MixedStep(
                    tuple(sorted(rng.sample(range(1, 40), rng.randint(1, 4)))), rng.randint(1, 200), rng.randint(1, 64)
                ),
            )
        manager = KVManager(
            BlockPool(num_blocks),
            self.block_size,
            prefix_caching=rng.random() < 0.8,
            hash_function=weak_hash if rng.random() < 0.3 else chain,
        )
        self.picture_random = seen = random.Random(seed + 7)  # of its own: other schedules stay as they were
        self.encoder: EncoderBudget | None = None
        if seen.random() < 0.5:
            most = seen.randint(1, 2) if chunked else MOST_PICTURES
            self.encoder = EncoderBudget(max(most, seen.randint(1, 4)), most)
            limits += (self.encoder,)
        self.scheduler = Scheduler(
            manager,
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=self.max_model_len,
            policy=POLICIES[rng.choice(["fcfs", "priority"])],
            limits=limits,
            riders=() if self.encoder is None else (self.encoder,),
            chunked_prefill=chunked,
            clock=lambda: self.now,
        )
        self.now = 1.0
        self.tenants = rng.choice([("",), ("",), ("a", "b"), ("a", "b", "c")])
        self.grammar = FakeGrammar(self.scheduler, rng, rng.choice([0, 0, 0.1, 0.5]))
        self.worker = FakeWorker(num_rows=rows, num_blocks=num_blocks, block_size=self.block_size, max_tokens=budget)
        executor = ThreadExecutor(self.worker) if threaded else InlineExecutor(self.worker)
        if threaded:
            threading.Thread(target=executor.serve, daemon=True).start()
        self.executor = executor
        self.deep = depth > 1
        self.core = (
            PipelinedCore(self.scheduler, executor, depth)
            if self.deep
            else EngineCore(self.scheduler, executor, self.grammar)
        )
        self.messages: dict[int, AddRequest] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finished: Counter[int] = Counter()
        self.reasons: dict[int, str] = {}
        self.late: set[int] = set()
        self.tenant = ""
        self.cached: dict[int, int] = {}
        self.scores: dict[int, list[TokenLogprobs]] = {}
        self.group: tuple[list[int], list[Picture], str, int, int] | None = None  # and members still to come
        self.prefixes = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(3)]

    def run(self, requests: int) -> None:
        """Add requests at random moments, abort some, and run until idle."""
        rng = self.random
        aborted: set[int] = set()
        left = requests
        held = []
        while left or held or self.core.busy or self.grammar.waits:
            while left and (rng.random() < 0.4 or not (self.core.busy or held or self.grammar.waits)):
                left -= 1
                request = self._add(requests - left)
                if request.state == "held":
                    held.append(request)
            if held and (rng.random() < 0.5 or not self.core.busy):
                self.scheduler.release_hold(held.pop(rng.randrange(len(held))))
            if self.messages and rng.random() < 0.05:
                victim = rng.choice(list(self.messages))
                aborted.add(victim)
                self.scheduler.abort([victim, 10_000])
            self.now += 1
            self._take(self.core.step().outputs)
        self._take(self.core.step().outputs)
        self.scheduler.check_integrity()
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)
        if self.encoder is not None:
            self.encoder.begin(0)
            assert self.encoder.num_held == 0, "a picture is held for nobody"
            assert self.worker.num_encoded <= self.encoder.num_queries - self.encoder.num_hits
        self.executor.close()
        self._check(aborted)

    def _add(self, id_: int):
        rng = self.random
        prefix = rng.choice(self.prefixes)[: rng.randint(0, 30)]
        prompt = (prefix + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))])[: self.max_model_len - 1]
        params = SamplingParams(max_tokens=(most := rng.randint(1, 30)), min_tokens=rng.randint(0, min(4, most)))
        params.prompt_logprobs = 0 if rng.random() < 0.15 else None
        params.skip_reading_prefix_cache = True if rng.random() < 0.05 else None
        stop = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 1, 6]))]
        salt, group = rng.choice(["", "", "tenant"]), -1
        self.tenant = rng.choice(self.tenants) if self.group is None else self.tenant
        start_by = self.now + rng.randint(1, 30) if rng.random() < 0.1 else 0.0
        if self.group is not None:
            prompt, pictures, salt, group, left = self.group
            params.prompt_logprobs = None
            self.group = (prompt, pictures, salt, group, left - 1) if left > 1 else None
        else:
            prompt, pictures = self._with_pictures(prompt)
            if rng.random() < 0.15:
                group = id_
                self.group = (prompt, pictures, salt, id_, rng.randint(1, 4))
        priority = rng.randint(0, 3)
        message = AddRequest(
            *(id_, pack_ids(prompt), params, stop, priority, salt, group),
            tenant=self.tenant,
            start_by=start_by,
            pictures=pictures,
        )
        self.messages[id_] = message
        if rng.random() < 0.2 and not self.deep:  # a mask needs every token before it
            self.grammar.constrained[id_] = rng.choice([0, 0, 0, 3])
        return self.scheduler.add(message, held=rng.random() < 0.1)

    def _with_pictures(self, prompt: list[int]) -> tuple[list[int], list[Picture]]:
        """The prompt with some pictures in it, few different ones and often in the same places."""
        rng, pictures = self.picture_random, []
        prompt = list(prompt)
        while self.encoder is not None and rng.random() < 0.5 and len(pictures) < MOST_PICTURES:
            kind = rng.randrange(4)
            length = kind % 2 * 5 + 2
            start = max(rng.choice([0, 2, 5, 11]), pictures[-1].end if pictures else 0)
            if len(prompt) + length >= self.max_model_len or start > len(prompt):
                break
            prompt[start:start] = [PLACEHOLDER] * length
            pictures.append(Picture(start, length, bytes([kind]), 1, 1, b"rgb"))
        return prompt, pictures

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            assert not self.finished[output.id], "tokens after the finish"
            self.outputs.setdefault(output.id, []).extend(output.token_ids)
            if output.prompt_logprobs:
                assert not self.outputs[output.id], "the prompt's scores come before all tokens"
                self.scores.setdefault(output.id, []).extend(output.prompt_logprobs)
            if output.finish_reason:
                self.finished[output.id] += 1
                self.reasons[output.id] = output.finish_reason
                if output.late:
                    self.late.add(output.id)
                    assert self.messages[output.id].start_by <= self.now and not self.outputs[output.id]
            self.cached[output.id] = max(self.cached.get(output.id, 0), output.num_cached_tokens)

    def _check(self, aborted: set[int]) -> None:
        for id_, message in self.messages.items():
            assert self.finished[id_] == 1, f"request {id_} finished {self.finished[id_]} times"
            tokens, reason = expected_output(
                message, constrained=self.grammar.constrained.get(id_), max_model_len=self.max_model_len
            )
            scores = expected_scores(message) if message.params.prompt_logprobs is not None else []
            found = self.scores.get(id_, [])
            assert found == (scores[: len(found)] if self.reasons[id_] == "abort" else scores)
            if self.reasons[id_] == "abort":
                assert id_ in aborted or id_ in self.late
                assert self.outputs[id_] == tokens[: len(self.outputs[id_])]
            else:
                assert (self.outputs[id_], self.reasons[id_]) == (tokens, reason)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_output_equals_the_sequential_reference(chunk: int) -> None:
    preemptions = hits = requests = lost = late = pictures = seen_again = 0
    for seed in range(chunk * SCHEDULES // CHUNKS, (chunk + 1) * SCHEDULES // CHUNKS):
        schedule = Schedule(seed)
        schedule.run(count := 4 + seed % 17)
        stats = schedule.scheduler.stats()
        preemptions += stats.num_preemptions
        hits += stats.prefix_hits
        requests += count
        lost += schedule.grammar.num_lost
        late += len(schedule.late)
        if schedule.encoder is not None:
            pictures += schedule.encoder.num_queries
            seen_again += schedule.encoder.num_hits
    # the schedules must reach what they are for
    assert preemptions > requests / 50 and hits > requests / 4 and lost > requests / 50
    assert late > requests / 100
    assert pictures > requests / 10 and seen_again > pictures / 10


def test_the_same_with_a_device_thread() -> None:
    for seed in range(60):
        Schedule(100_000 + seed, threaded=True).run(10)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_same_with_more_steps_in_flight(depth: int) -> None:
    for seed in range(SCHEDULES // 12):
        Schedule(200_000 + seed, depth=depth).run(4 + seed % 17)


def test_a_wrong_slot_is_noticed() -> None:
    """The check can fail: a device that reads one slot off in a while is caught within a few schedules."""
    with pytest.raises(AssertionError):
        for seed in range(20):
            schedule = Schedule(seed)
            slot = schedule.worker._slot
            schedule.worker._slot = lambda row, position, slot=slot: slot(row, position - (position % 7 == 5))
            schedule.run(10)
