"""FusedSampler says what Sampler says: tokens, log-probabilities, what it remembers of rows."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # must be set before triton is imported
pytest.importorskip("triton")

import triton
from test_sampling import batch_of, new_row, reference_law

from quire.bounds import ThinkingLimit
from quire.messages import NewRow
from quire.params import SamplingParams
from quire.worker.sampling.fused import FusedSampler
from quire.worker.sampling.protocol import SamplingBatch, Stage
from quire.worker.sampling.sampler import Sampler, word_stages

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
RUNS = GPU or not isinstance(triton.language.sum, triton.runtime.JITFunction)
VOCAB = 300


@pytest.fixture(autouse=True)
def needs_interpreter(request: pytest.FixtureRequest) -> None:
    if RUNS == ("its_own_process" in request.node.name):
        pytest.skip("triton was imported " + ("as these tests need it" if RUNS else "without its interpreter"))


@pytest.mark.timeout(280)
def test_in_its_own_process() -> None:
    """Where another test imported triton without its interpreter, these need a process in which it has it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True, timeout=250)


def batch(rows: list[int], positions: list[int], masks: dict[int, bytes] | None = None) -> SamplingBatch:
    made = batch_of(rows, positions, masks)
    return SamplingBatch(made.rows.to(DEVICE), made.positions.to(DEVICE), made.row_list, made.masks, made.tokens)


def poison(sampler: FusedSampler) -> None:
    """Nothing may be read from scratch memory that was not written in the same call."""
    for scratch in (sampler._scratch, sampler._fused_scratch):
        for name, buffer in vars(scratch).items():
            if name != "counters":
                buffer.fill_(math.nan if buffer.is_floating_point() else -7)


WISHES = [
    {"temperature": 0},
    {},
    {"temperature": 0.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 100, "top_p": 0.9, "temperature": 1.3},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05},
    {"repetition_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": -0.6},
    {"temperature": 0.8, "top_p": 0.95, "presence_penalty": 1.0},
    {"temperature": 0, "presence_penalty": 2.0, "frequency_penalty": -0.5},
    {"temperature": 0, "min_tokens": 4},
    {"min_tokens": 2, "top_p": 0.9},
]


def test_a_conversation_of_all_kinds_of_rows() -> None:
    """Over 16 steps both samplers choose the same tokens, penalties following what was chosen."""
    n = len(WISHES)
    plain, fused = Sampler(n, VOCAB, DEVICE), FusedSampler(n, VOCAB, DEVICE)
    for row, wishes in enumerate(WISHES):
        new = new_row(row, [1, 5, 9, 5], [2, 2, 9, 250], stop=[11, 12], **{"seed": 100 + row, **wishes})
        plain.start_row(new)
        fused.start_row(new)
    generator = torch.Generator().manual_seed(0)
    for step in range(16):
        if step == 8:  # a row changes hands
            new = new_row(10, [4], frequency_penalty=1.0, temperature=0)
            plain.start_row(new)
            fused.start_row(new)
        logits = (torch.randn(n, VOCAB, generator=generator) * 1.5).to(DEVICE)
        if step % 2:
            logits = logits.half()
        before = logits.clone()
        poison(fused)
        made = batch(list(range(n)), [8 + step] * n)
        assert torch.equal(fused(logits, made).token_ids, plain(logits, made).token_ids), f"step {step}"
        assert torch.equal(logits, before)


@pytest.mark.parametrize(("wishes", "draws"), [({"temperature": 1.2}, 600), ({"top_p": 0.8, "top_k": 12}, 200)])
def test_sampled_law(wishes: dict, draws: int) -> None:
    """Few draws under the interpreter, which takes 25 ms for one; the same as the twin's is shown for more."""
    draws, vocab, prompt = draws * (100 if GPU else 1), 30, [1]
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(7))
    fused = FusedSampler(1000, vocab, DEVICE)
    fused.start_row(new_row(2, prompt, **wishes))
    counts = np.zeros(vocab)
    for begin in range(0, draws, 200):
        made = batch([2] * 200, list(range(begin, begin + 200)))
        counts += np.bincount(fused(logits.repeat(200, 1).to(DEVICE), made).token_ids.cpu(), minlength=vocab)
    expected = reference_law(logits.numpy(), SamplingParams(**wishes), prompt, []) * draws
    assert counts[expected == 0].sum() == 0
    large = expected >= 5
    observed, wanted = (
        np.append(counts[large], counts[~large].sum()),
        np.append(expected[large], expected[~large].sum()),
    )
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_many_draws_are_those_of_the_twin() -> None:
    n = 200
    plain, fused = Sampler(n, 64, DEVICE), FusedSampler(n, 64, DEVICE)
    for row in range(n):
        new = new_row(row, [1], temperature=0.5 + row % 7, min_p=0.02 * (row % 3))
        plain.start_row(new)
        fused.start_row(new)
    steps = 200 if GPU else 4
    different = 0
    for step in range(steps):
        logits = torch.randn(n, 64, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        made = batch(list(range(n)), [step] * n)
        different += int((fused(logits, made).token_ids != plain(logits, made).token_ids).sum())
    assert different <= 1 + n * steps // 10_000


def test_same_tokens_in_any_batch_and_by_any_way() -> None:
    """`sample` with padding and lengths by row, and calls with positions, alone and together."""
    n = 6
    fused = FusedSampler(16, VOCAB, DEVICE)
    rows = [3, 15, 0, 7, 8, 1]
    for row in rows:
        fused.start_row(new_row(row, [row], seed=50 + row, top_p=0.9, temperature=1.5))
    logits = torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    lens = torch.arange(100, 117, dtype=torch.int32, device=DEVICE)
    together = fused(logits, batch(rows, [100 + row for row in rows])).token_ids
    alone = [fused(logits[i : i + 1], batch([row], [100 + row])).token_ids.item() for i, row in enumerate(rows)]
    assert together.tolist() == alone
    padded = torch.tensor([16, *reversed(rows), 16], device=DEVICE, dtype=torch.int32)
    padding = torch.full((1, VOCAB), math.nan, device=DEVICE)
    poison(fused)
    tokens = fused.sample("fused", torch.cat([padding, logits.flip(0), padding]), padded, lens)
    assert tokens[1:-1].tolist() == alone[::-1]
    assert all(0 <= token < VOCAB for token in tokens.tolist())
    assert fused(logits, batch(rows, [7] * n)).token_ids.tolist() != alone


def test_variants() -> None:
    fused = FusedSampler(8, VOCAB, DEVICE, (Favour(8),))
    wishes = [{"temperature": 0}, {}, {"temperature": 0, "presence_penalty": 1}, {"logprobs": 1}, {"min_tokens": 3}]
    for row, wish in enumerate(wishes):
        fused.start_row(new_row(row, [1], stop=[7], **wish))
    fused.start_row(new_row(5, [1], seed=77))
    fused.start_row(new_row(6, [1], stop=list(range(40)), min_tokens=3))
    kinds = [fused.variant([row]) for row in range(8)]
    assert kinds == ["greedy", "fused", "adjusted", "eager", "adjusted", "eager", "adjusted", "greedy"]
    kinds = [fused.variant(rows) for rows in ([0, 7], [0, 1], [0, 1, 2], [0, 3])]
    assert kinds == ["greedy", "fused", "adjusted", "eager"]


def test_greedy_takes_the_first_of_equals_alone_and_in_company() -> None:
    logits = torch.randint(0, 9, (6, VOCAB), generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    fused = FusedSampler(7, VOCAB, DEVICE)
    for row in range(6):
        fused.start_row(new_row(row, [1], temperature=0))
    fused.start_row(new_row(6, [1], temperature=0.7, presence_penalty=1.0))
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert fused(logits, batch(list(range(6)), [1] * 6)).token_ids.tolist() == first
    mixed = fused(torch.cat([logits, logits[:1]]), batch(list(range(7)), [1] * 7)).token_ids
    assert mixed[:6].tolist() == first


def test_a_row_forgets_its_last_request() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    fused = FusedSampler(2, VOCAB, DEVICE)
    heavy = {"repetition_penalty": 5.0, "presence_penalty": 2.0, "min_tokens": 3, "min_p": 1.0, "top_k": 1}
    best = int(logits[0].argmax())
    for row in (0, 1):
        fused.start_row(new_row(row, [best], [best], stop=[best], **heavy))
    assert fused(logits, batch([0, 1], [2, 2])).token_ids[0] != best
    fused.start_row(new_row(0, [best], temperature=0))
    assert fused(logits, batch([0, 1], [3, 3])).token_ids[0] == best
    fused.start_row(new_row(0, [5], temperature=0, presence_penalty=2.0))
    assert fused(logits, batch([0, 1], [4, 4])).token_ids[0] == best, "tokens seen by the row before do not count"


def test_penalties_count_what_is_sampled_but_not_for_padding() -> None:
    logits = torch.zeros(3, VOCAB, device=DEVICE)
    logits[:, :3] = torch.tensor([3.0, 2.9, 2.8])
    fused = FusedSampler(2, VOCAB, DEVICE)
    fused.start_row(new_row(0, [9], presence_penalty=1.0, temperature=0))
    fused.flush()
    rows, lens = torch.tensor([0, 2, 2], device=DEVICE), torch.ones(3, dtype=torch.int32, device=DEVICE)
    tokens = [fused.sample("adjusted", logits, rows, lens).tolist() for _ in range(3)]
    assert tokens == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    seen = fused._seen
    assert seen.sum(dim=1).tolist() == [1 + 2 * 3, 0, 0]


def test_counts_saturate() -> None:
    fused = FusedSampler(1, 10, DEVICE)
    new = new_row(0, [3], [3] * 20_000 + [4] * 16_382, presence_penalty=1e-3, temperature=0)
    fused.start_row(new)
    logits = torch.zeros(1, 10, device=DEVICE)
    logits[0, 4] = 1.0
    for step in range(3):
        assert fused(logits, batch([0], [step])).token_ids.item() == 4
    assert fused._seen[0].tolist() == [0, 0, 0, 32767, 32766, 0, 0, 0, 0, 0]


def test_min_tokens_with_few_and_many_stop_tokens() -> None:
    logits = torch.zeros(1, VOCAB, device=DEVICE)
    logits[0, 7] = 10
    logits[0, 250] = 5
    for stop in ([7], [*range(100)]):
        fused = FusedSampler(1, VOCAB, DEVICE)
        fused.start_row(new_row(0, [1, 2], stop=stop, min_tokens=2, temperature=0))
        assert [fused(logits, batch([0], [p])).token_ids.item() for p in (2, 3, 4)] == [250, 250, 7]


def test_masks_as_the_twin_has_them() -> None:
    plain, fused = Sampler(4, VOCAB, DEVICE), FusedSampler(4, VOCAB, DEVICE)
    for row, wishes in enumerate([{"temperature": 0}, {"top_p": 0.9}, {"temperature": 0}, {"presence_penalty": 1.0}]):
        new = new_row(row, [1], **wishes)
        plain.start_row(new)
        fused.start_row(new)
    rng = np.random.default_rng(0)
    masks = {i: rng.integers(0, 256, -(-VOCAB // 8), dtype=np.uint8).tobytes() for i in (0, 1, 3)}
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for rows in ([0, 1, 2, 3], [0, 2]):
        kept = {i: mask for i, mask in masks.items() if i < len(rows)}
        made = batch(rows, [5] * len(rows), kept)
        assert torch.equal(fused(logits[rows], made).token_ids, plain(logits[rows], made).token_ids)


class Favour(Stage):
    """Adds 100 to a row's token 5 and counts what it is told."""

    def __init__(self, num_rows: int) -> None:
        self.rows: set[int] = set()
        self.observed: list[list[int]] = []

    def wants(self, new: NewRow) -> bool:
        return new.params.seed == 77

    def start(self, new: NewRow) -> None:
        self.rows.add(new.row)

    def clear(self, row: int) -> None:
        self.rows.discard(row)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        for i, row in enumerate(batch.row_list):
            if row in self.rows:
                logits[i, 5] += 100
        return logits

    def observe(self, batch: SamplingBatch, token_ids: torch.Tensor) -> None:
        self.observed.append(token_ids.tolist())


def test_another_stage() -> None:
    stage = Favour(2)
    fused = FusedSampler(2, VOCAB, DEVICE, (stage,))
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    fused.start_row(new_row(0, [1], seed=77, top_p=0.5))
    fused.start_row(new_row(1, [1], temperature=0))
    best = int(logits[1].argmax())
    assert fused(logits, batch([0, 1], [1, 1])).token_ids.tolist() == [5, best] and stage.observed == [[5, best]]
    fused.start_row(new_row(0, [1], temperature=0))
    assert fused(logits, batch([0, 1], [1, 1])).token_ids.tolist() == logits.argmax(1).tolist()


def test_logprobs_as_the_twin_has_them() -> None:
    wishes = [
        {"logprobs": 0},
        {},
        {"temperature": 3.0, "logprobs": 5, "top_p": 0.9},
        {"temperature": 0, "logprobs": -1},
        {"logprob_token_ids": [250, 3, 3]},
    ]
    plain, fused = Sampler(5, VOCAB, DEVICE), FusedSampler(5, VOCAB, DEVICE)
    for row, wish in enumerate(wishes):
        plain.start_row(new_row(row, [1], **wish))
        fused.start_row(new_row(row, [1], **wish))
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    made = batch([0, 1, 2, 3, 4], [1] * 5)
    expected, found = plain(logits, made), fused(logits, made)
    assert torch.equal(expected.token_ids, found.token_ids)
    expected, found = expected.logprobs.to_messages(), found.logprobs.to_messages()
    assert set(expected) == set(found) == {0, 2, 3, 4}
    for sample in found:
        assert found[sample].token_ids == expected[sample].token_ids
        assert found[sample].rank == expected[sample].rank
        np.testing.assert_allclose(found[sample].logprobs, expected[sample].logprobs, atol=1e-5)


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("variant", ["greedy", "fused", "adjusted"])
def test_in_a_graph(variant: str) -> None:
    """A captured call follows new rows and lengths at each replay."""
    fused, plain = FusedSampler(8, 5000, DEVICE), Sampler(8, 5000, DEVICE)
    logits, rows = torch.empty(4, 5000, device=DEVICE), torch.tensor([8, 2, 5, 8], device=DEVICE)
    lens = torch.zeros(9, dtype=torch.int32, device=DEVICE)
    fused.sample(variant, logits.normal_(), rows, lens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = fused.sample(variant, logits, rows, lens)
    wishes = {"greedy": {"temperature": 0}, "fused": {"top_p": 0.9}, "adjusted": {"top_k": 50, "presence_penalty": 1.0}}
    for step in range(12):
        if step % 4 == 0:
            for row in (2, 5):
                new = new_row(row, [1, row], seed=step + row, **wishes[variant])
                fused.start_row(new)
                plain.start_row(new)
        logits.normal_()
        lens.fill_(step + 3)
        fused.flush()
        graph.replay()
        assert torch.equal(tokens[1:3], plain(logits[1:3], batch([2, 5], [step + 3] * 2)).token_ids)


def test_stages_about_single_tokens() -> None:
    """What a row says of single tokens is applied before the kernel, and such rows are no part of a graph."""
    stages = word_stages(8, VOCAB, DEVICE)
    mine, twin = FusedSampler(8, VOCAB, DEVICE, stages), Sampler(8, VOCAB, torch.device("cpu"))
    wishes = [
        {"temperature": 0},
        {"temperature": 0, "allowed_token_ids": [7, 9, 250]},
        {"temperature": 0, "logit_bias": {3: 50.0, 4: 60.0}, "presence_penalty": 1.0},
        {"temperature": 0, "bad_words_token_ids": [[5], [1, 2, 6]]},
        {"top_p": 0.9, "allowed_token_ids": [1, 2, 3], "logit_bias": {2: 1.0}},
        {"top_k": 3, "thinking_limit": ThinkingLimit(2, [77, 78], inside=True)},
    ]
    for row, wish in enumerate(wishes):
        for sampler in (mine, twin):
            sampler.start_row(new_row(row, [4, 4], [1, 2], **wish))
    assert mine.variant([0]) == "greedy"
    assert {mine.variant([row]) for row in range(1, 6)} == {"eager"}
    tokens = torch.zeros(9, 8, dtype=torch.int32)
    tokens[:, :4] = torch.tensor([4, 4, 1, 2])
    for seed in range(5):
        logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
        logits[3, 5:7] += 20
        rows, positions = [0, 1, 2, 3, 4, 5], [4] * 6
        plain = twin(logits, batch_of(rows, positions, tokens=tokens)).token_ids
        made = batch_of(rows, positions, tokens=tokens)
        here = SamplingBatch(
            made.rows.to(DEVICE), made.positions.to(DEVICE), made.row_list, made.masks, made.tokens.to(DEVICE)
        )
        assert mine(logits.to(DEVICE), here).token_ids.tolist() == plain.tolist()
