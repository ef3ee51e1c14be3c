"""The sampler against plain references: the law by chi-square, each stage by its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from quire.messages import NewRow, pack_ids
from quire.params import SamplingParams
from quire.worker.sampling.draw import draw, uniform
from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.sampling.sampler import Sampler

CPU = torch.device("cpu")
VOCAB = 300
NO_TOKENS = torch.zeros(64, 1, dtype=torch.int32)


def new_row(row: int, prompt: list[int], output: list[int] = (), stop: list[int] = (), **params) -> NewRow:
    params = SamplingParams(**{"seed": row, **params})
    return NewRow(row, pack_ids([*prompt, *output]), len(prompt), 0, params, list(stop))


def batch_of(
    rows: list[int], positions: list[int], masks: dict[int, bytes] | None = None, tokens: torch.Tensor = NO_TOKENS
) -> SamplingBatch:
    return SamplingBatch(torch.tensor(rows), torch.tensor(positions), tuple(rows), masks or {}, tokens)


def reference_law(logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]) -> np.ndarray:
    """One row, in float64, straight from the definitions, by sorting."""
    x = logits.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    x /= params.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    p[p < params.min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if params.top_k > 0:
        p[order[params.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= params.top_p]] = 0
    return p / p.sum()


CASES = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 100, "top_p": 0.9, "temperature": 1.3},
    {"top_k": 200, "top_p": 0.99, "min_p": 0.01},
    {"repetition_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": -0.6},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "presence_penalty": 1.0},
]


@pytest.mark.parametrize("params", CASES, ids=str)
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_sampled_law(params: dict, scale: float) -> None:
    """20,000 draws of one row, each at another position, follow the reference distribution (p > 1e-4 for 18 tests)."""
    torch.manual_seed(7)
    logits = torch.randn(VOCAB) * scale
    prompt, output = [1, 5, 9, 5], [2, 2, 9, 250]
    sampler = Sampler(4, VOCAB, CPU)
    sampler.start_row(new_row(2, prompt, output, **params))
    draws = 20_000
    stages = [s for i, s in enumerate(sampler._stages) if sampler._active[2, i]]
    counts = np.zeros(VOCAB)
    for begin in range(0, draws, 1000):
        batch = batch_of([2] * 1000, list(range(begin, begin + 1000)))
        x = logits.repeat(1000, 1)
        for stage in stages:
            x = stage.apply(x, batch)
        counts += np.bincount(sampler._choose(x, batch, np.ones(1000, bool)).numpy(), minlength=VOCAB)
    expected = reference_law(logits.numpy(), SamplingParams(**params), prompt, output) * draws
    assert counts[expected == 0].sum() == 0, "a token was drawn that should have been cut off"
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_the_test_can_fail() -> None:
    """Draws at a wrong temperature are told apart by the same statistic."""
    torch.manual_seed(7)
    logits = torch.randn(VOCAB) * 2
    noise = uniform(torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000))
    tokens = draw((logits / 1.1).repeat(20_000, 1), noise)
    expected = torch.softmax(logits, 0).double().numpy() * 20_000
    counts = np.bincount(tokens.numpy(), minlength=VOCAB)
    large = expected >= 5
    assert chisquare(counts[large], expected[large] * counts[large].sum() / expected[large].sum()).pvalue < 1e-6


def test_same_seed_same_tokens_in_any_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, VOCAB)
    sampler = Sampler(64, VOCAB, CPU)
    for row in range(16):
        sampler.start_row(new_row(row, [row], seed=1000 + row, top_p=0.9, temperature=0.9))
        sampler.start_row(new_row(row + 32, [row], seed=1000 + row, top_p=0.9, temperature=0.9))
    together = sampler(logits, batch_of(list(range(16)), [5] * 16)).token_ids
    order = torch.randperm(16)
    shuffled = sampler(logits[order], batch_of([int(i) + 32 for i in order], [5] * 16)).token_ids
    alone = [sampler(logits[i : i + 1], batch_of([i], [5])).token_ids.item() for i in range(16)]
    assert together.tolist() == alone
    assert shuffled.tolist() == together[order].tolist()
    assert sampler(logits, batch_of(list(range(16)), [6] * 16)).token_ids.tolist() != alone


def test_greedy_and_random_rows_together() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB)
    sampler = Sampler(3, VOCAB, CPU)
    sampler.start_row(new_row(0, [1], temperature=0))
    sampler.start_row(new_row(1, [1], temperature=1.0, top_k=1))
    sampler.start_row(new_row(2, [1], temperature=2.0))
    before = logits.clone()
    tokens = sampler(logits, batch_of([0, 1, 2], [1, 1, 1])).token_ids
    assert tokens[:2].tolist() == logits[:2].argmax(1).tolist()
    assert torch.equal(before, logits), "raw logits must stay as they are"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_equals_alone_and_in_company(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 9, (6, VOCAB)).to(dtype)
    sampler = Sampler(7, VOCAB, CPU)
    for row in range(6):
        sampler.start_row(new_row(row, [1], temperature=0))
    sampler.start_row(new_row(6, [1], temperature=0.7, presence_penalty=1.0))
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert sampler(logits, batch_of(list(range(6)), [1] * 6)).token_ids.tolist() == first
    mixed = sampler(torch.cat([logits, logits[:1]]), batch_of(list(range(7)), [1] * 7)).token_ids
    assert mixed[:6].tolist() == first


def test_a_row_forgets_its_last_request() -> None:
    """Values of a former request must not act on the next one, also when a neighbour keeps the stages active."""
    torch.manual_seed(0)
    logits = torch.randn(2, VOCAB)
    sampler = Sampler(2, VOCAB, CPU)
    heavy = {"repetition_penalty": 5.0, "presence_penalty": 2.0, "min_tokens": 3, "min_p": 1.0, "top_k": 1}
    best = int(logits[0].argmax())
    for row in (0, 1):
        sampler.start_row(new_row(row, [best], [best], stop=[best], **heavy))
    sampler.start_row(new_row(0, [best], temperature=0))
    assert sampler(logits, batch_of([0, 1], [2, 2])).token_ids[0] == best


def test_min_tokens_forbids_stop_tokens_until_then() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 10
    logits[0, 8] = 5
    sampler = Sampler(1, VOCAB, CPU)
    sampler.start_row(new_row(0, [1, 2], stop=[7], min_tokens=2, temperature=0))
    assert [sampler(logits, batch_of([0], [p])).token_ids.item() for p in (2, 3, 4)] == [8, 8, 7]


def test_penalties_follow_what_is_sampled() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, :3] = torch.tensor([3.0, 2.9, 2.8])
    sampler = Sampler(1, VOCAB, CPU)
    sampler.start_row(new_row(0, [9], presence_penalty=1.0, temperature=0))
    assert [sampler(logits, batch_of([0], [p])).token_ids.item() for p in (1, 2, 3)] == [0, 1, 2]


def test_masks() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB)
    sampler = Sampler(3, VOCAB, CPU)
    for row in range(3):
        sampler.start_row(new_row(row, [1], temperature=0))
    bits = bytearray(-(-VOCAB // 8))
    bits[37 // 8] |= 1 << 37 % 8
    tokens = sampler(logits, batch_of([0, 1, 2], [1, 1, 1], {1: bytes(bits)})).token_ids.tolist()
    assert tokens == [int(logits[0].argmax()), 37, int(logits[2].argmax())]


def test_logprobs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB)
    sampler = Sampler(3, VOCAB, CPU)
    sampler.start_row(new_row(0, [1], temperature=0, logprobs=0))
    sampler.start_row(new_row(1, [1], temperature=0))
    sampler.start_row(new_row(2, [1], temperature=3.0, logprobs=5))
    result = sampler(logits, batch_of([0, 1, 2], [1, 1, 1]))
    found = result.logprobs.to_messages()
    assert set(found) == {0, 2}
    reference = torch.log_softmax(logits, dim=1)
    for row, most in ((0, 0), (2, 5)):
        token = result.token_ids[row].item()
        assert len(found[row].token_ids) == 1 + most and found[row].token_ids[0] == token
        assert found[row].rank == 1 + int((logits[row] > logits[row, token]).sum())
        np.testing.assert_allclose(found[row].logprobs, reference[row, found[row].token_ids], atol=1e-5)
        assert found[row].token_ids[1:] == reference[row].topk(most).indices.tolist()


def test_extreme_logits_draw_only_possible_tokens() -> None:
    logits = torch.full((4, VOCAB), float("-inf"))
    logits[:, 299] = 0.0
    logits[1, 0] = -1e30
    noise = torch.tensor([0.0, 0.5, 1 - 2**-53, 0.999999])
    assert draw(logits, noise.double()).tolist() == [299] * 4


def test_rows_without_a_possible_token_harm_nobody() -> None:
    logits = torch.randn(3, VOCAB)
    alone = draw(logits[:1], torch.tensor([0.3], dtype=torch.float64))
    logits[1], logits[2] = float("-inf"), float("nan")
    tokens = draw(logits, torch.full((3,), 0.3, dtype=torch.float64))
    assert tokens[0] == alone[0] and bool(((tokens >= 0) & (tokens < VOCAB)).all())


def test_uniform_is_uniform() -> None:
    values = uniform(torch.arange(200).repeat_interleave(500), torch.arange(500).repeat(200)).numpy()
    assert 0 <= values.min() and values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 1e-3
    assert len(np.unique(values)) == len(values)


def test_allowed_tokens_and_bias() -> None:
    sampler = Sampler(8, VOCAB, CPU)
    sampler.start_row(new_row(0, [1], temperature=0, allowed_token_ids=[5, 17]))
    sampler.start_row(new_row(1, [1], temperature=0, logit_bias={40: 100, 41: 3.5}))
    sampler.start_row(new_row(2, [1], temperature=0))
    logits = torch.zeros(3, VOCAB)
    logits[:, 100], logits[0, 17] = 5.0, 0.5
    assert sampler(logits, batch_of([0, 1, 2], [1, 1, 1])).token_ids.tolist() == [17, 40, 100]
    assert logits[0, 100] == 5.0, "the raw logits are left alone"
    sampler.start_row(new_row(0, [1], temperature=0))
    sampler.start_row(new_row(1, [1], temperature=0))
    assert sampler(logits, batch_of([0, 1, 2], [1, 1, 1])).token_ids.tolist() == [100, 100, 100]


def test_bad_words_by_brute_force() -> None:
    """Random words over random outputs; the prompt does not count."""
    rng = np.random.default_rng(0)
    sampler = Sampler(8, VOCAB, CPU)
    for _ in range(200):
        rows = rng.permutation(8)[: rng.integers(1, 8)].tolist()
        tokens = torch.zeros(8, 40, dtype=torch.int32)
        words, lens, prompts = [], [], []
        for row in rows:
            length, prompt = int(rng.integers(2, 30)), int(rng.integers(1, 10))
            known = rng.integers(0, 3, length).tolist()
            tokens[row, :length] = torch.tensor(known)
            own = [rng.integers(0, 3, rng.integers(1, 4)).tolist() for _ in range(rng.integers(0, 4))]
            split = min(prompt, length)
            sampler.start_row(new_row(row, known[:split], known[split:], temperature=0, bad_words_token_ids=own))
            words.append(own)
            lens.append(length)
            prompts.append(split)
        logits = torch.tensor(rng.normal(size=(len(rows), VOCAB)), dtype=torch.float32)
        logits[:, :3] += 10
        found = sampler(logits, batch_of(rows, lens, tokens=tokens)).token_ids.tolist()
        for i, row in enumerate(rows):
            output = tokens[row, prompts[i] : lens[i]].tolist()
            banned = {
                w[-1]
                for w in words[i]
                if len(w) == 1
                or (output[len(output) - len(w) + 1 :][: len(w) - 1] == w[:-1] and len(output) >= len(w) - 1)
            }
            allowed = [token for token in range(VOCAB) if token not in banned]
            assert found[i] == max(allowed, key=lambda token: float(logits[i, token]))
