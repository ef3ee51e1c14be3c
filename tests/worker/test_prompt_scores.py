"""PromptScorer against the definition: any plan, more positions than one pass takes, rows in any order."""

from __future__ import annotations

import random

import pytest
import torch

from quire.messages import NewRow, StepPlan, TokenLogprobs, pack_ids
from quire.params import SamplingParams
from quire.worker.sampling.logprobs import gather_logprobs
from quire.worker.sampling.prompt import LINES, PromptScorer

ROWS, VOCAB, WIDTH, LENGTH = 6, 50, 8, 900


class Device:
    """Hidden states that depend on the token at their position; counts the passes of the head."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(VOCAB, WIDTH, generator=generator)
        self.head_weight = torch.randn(VOCAB, WIDTH, generator=generator)
        self.tokens = torch.randint(0, VOCAB, (ROWS + 1, LENGTH), generator=generator, dtype=torch.int32)
        self.passes: list[int] = []

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(hidden))
        return hidden @ self.head_weight.T

    def score(self, scorer: PromptScorer, plan: StepPlan) -> dict[int, list[TokenLogprobs]]:
        if not scorer.wants(plan):
            return {}
        spans = zip(plan.rows, plan.starts, plan.counts, strict=True)
        hidden = torch.cat([self.embedding[self.tokens[row, start : start + n].long()] for row, start, n in spans])
        return scorer.score(plan, hidden, self.tokens, self.head, gather_logprobs).to_messages()

    def expected(self, row: int, position: int, most: int) -> TokenLogprobs:
        line = torch.log_softmax(self.embedding[self.tokens[row, position - 1].long()] @ self.head_weight.T, 0)
        token = int(self.tokens[row, position])
        top = line.topk(VOCAB if most == -1 else most)
        rank = 1 + int((line > line[token]).sum())
        return TokenLogprobs([token, *top.indices.tolist()], [float(line[token]), *top.values.tolist()], rank)


@pytest.mark.parametrize("seed", range(8))
def test_every_position_once_in_any_chunks(seed: int) -> None:
    rng, device = random.Random(seed), Device(seed)
    scorer = PromptScorer(ROWS, VOCAB)
    lengths = [rng.choice([1, 2, 30, 600]) for _ in range(ROWS)]
    asked = [rng.choice([None, 0, 3, -1]) for _ in range(ROWS)]
    ends = [length + rng.randint(0, 5) for length in lengths]  # it generates some tokens as well
    new = [
        NewRow(row, pack_ids([0] * lengths[row]), lengths[row], 0, SamplingParams(prompt_logprobs=asked[row]), [])
        for row in range(ROWS)
    ]
    for one in new:
        scorer.start_row(one)
    done, found = [0] * ROWS, [[] for _ in range(ROWS)]
    while any(d < end for d, end in zip(done, ends, strict=True)):
        rows = [row for row in rng.sample(range(ROWS), ROWS) if done[row] < ends[row] and rng.random() < 0.8]
        counts = [rng.choice([1, ends[row] - done[row], rng.randint(1, ends[row] - done[row])]) for row in rows]
        plan = StepPlan(0, [], [], rows, [done[row] for row in rows], counts, [])
        for index, entries in device.score(scorer, plan).items():
            assert len(found[rows[index]]) == plan.starts[index]
            found[rows[index]] += entries
        for row, count in zip(rows, counts, strict=True):
            done[row] += count
    for row in range(ROWS):
        wanted = range(1, lengths[row]) if asked[row] is not None else range(0)
        assert len(found[row]) == len(wanted)
        for position, entry in zip(wanted, found[row], strict=True):
            expected = device.expected(row, position, asked[row])
            assert (entry.token_ids, entry.rank) == (expected.token_ids, expected.rank)
            assert entry.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert max(device.passes, default=0) <= LINES
    assert not scorer.wants(StepPlan(0, [], [], list(range(ROWS)), [0] * ROWS, [1] * ROWS, []))


def test_a_row_that_begins_anew_or_beyond_its_prompt() -> None:
    scorer = PromptScorer(ROWS, VOCAB)
    plan = StepPlan(0, [], [], [2], [0], [5], [])

    def begin(num_computed: int, most: int | None) -> bool:
        scorer.start_row(NewRow(2, pack_ids([0] * 10), 10, num_computed, SamplingParams(prompt_logprobs=most), []))
        return scorer.wants(plan)

    assert [begin(0, 1), begin(8, 0), begin(9, 1), begin(0, None)] == [True, True, False, False]
