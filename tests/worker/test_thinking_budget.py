"""The bound on thoughts against its definition: whole answers, token by token, with rows that come and go."""

from __future__ import annotations

import random

import pytest
import torch

from quire.bounds import ThinkingLimit
from quire.messages import NewRow, pack_ids
from quire.params import SamplingParams
from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.sampling.sampler import Sampler

CPU = torch.device("cpu")
VOCAB = 40
OPENER, NUM_PROMPT = 30, 3
ENDS = {"one token": [31], "three tokens": [31, 32, 31]}


def reference(wishes: list[int], limit: ThinkingLimit) -> list[int]:
    """What is said if the model would say `wishes`."""
    said: list[int] = []
    begin = 0 if limit.inside else None
    ended = False
    for wish in wishes:
        place = None if begin is None or ended else len(said) - begin - limit.budget
        said.append(limit.end[place] if place is not None and 0 <= place < len(limit.end) else wish)
        if begin is None and said[-1] in limit.openers and len(said) <= 5:
            begin = len(said)
        elif begin is not None and said[-len(limit.end) :] == limit.end and len(said) - len(limit.end) >= begin:
            ended = True
    return said


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("params", [{"temperature": 0}, {}], ids=["greedy", "drawn"])
def test_whole_answers(inside: bool, end: list[int], params: dict) -> None:
    rng = random.Random(1)
    for trial in range(60):
        limit = ThinkingLimit(rng.choice([0, 1, 4, 9]), end, inside, [] if inside else [OPENER])
        opens = rng.randint(0, 6)
        wishes = [rng.choice([1, 2, 5, OPENER] if i == opens else [1, 2, 5, 6]) for i in range(24)]
        if rng.random() < 0.5:
            at = rng.randrange(20)
            wishes[at : at + len(end)] = end
        full = SamplingParams(**{"seed": trial, **params}, thinking_limit=limit)
        given_up = rng.sample(range(24), 2)  # where the row is given up and taken anew
        assert answer(wishes, full, given_up) == reference(wishes, limit), (wishes, limit)


def test_a_closing_tag_comes_although_its_tokens_are_bad_words() -> None:
    limit = ThinkingLimit(2, ENDS["three tokens"], inside=True)
    params = SamplingParams(temperature=0, bad_words_token_ids=[[31]], allowed_token_ids=[1, 32], thinking_limit=limit)
    assert answer([1] * 8, params, []) == [1, 1, 31, 32, 31, 1, 1, 1]


def answer(wishes: list[int], params: SamplingParams, given_up: list[int]) -> list[int]:
    """A row whose model wants to say `wishes`, beside one without a bound."""
    sampler = Sampler(4, VOCAB, CPU)
    tokens = torch.zeros(5, 64, dtype=torch.int32)
    prompt, said = [7, 31, 8], list[int]()
    sampler.start_row(NewRow(1, pack_ids([9]), 1, 0, SamplingParams(temperature=0), []))

    def start() -> None:
        sampler.start_row(NewRow(2, pack_ids([*prompt, *said]), NUM_PROMPT, 0, params, []))
        tokens[2, : NUM_PROMPT + len(said)] = torch.tensor([*prompt, *said], dtype=torch.int32)

    start()
    for number, wish in enumerate(wishes):
        if number in given_up:
            sampler.start_row(NewRow(2, pack_ids([1]), 1, 0, SamplingParams(temperature=0), []))
            start()
        logits = torch.zeros(2, VOCAB)
        logits[0, 3] = logits[1, wish] = 1000.0
        position = NUM_PROMPT + number
        batch = SamplingBatch(torch.tensor([1, 2]), torch.tensor([number + 1, position]), (1, 2), {}, tokens)
        other, new = sampler(logits, batch).token_ids.tolist()
        assert other == 3
        tokens[2, position] = new
        said.append(new)
    return said
