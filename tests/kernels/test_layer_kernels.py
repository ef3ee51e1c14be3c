"""Triton kernels of the layers beside their plain-torch twins; buffers start as NaN."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

from quire.worker.kernels.fused import TritonKernels
from quire.worker.kernels.gemv import GemvTiles, gated_gemv, gemv
from quire.worker.kernels.plain import ACTIVATIONS, PlainKernels, split_heads
from quire.worker.kernels.rope import norm_turn_store
from quire.worker.kernels.step import append, begin, gather

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FORMATS = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]  # the interpreter is wrong in bfloat16
PLAIN, TRITON = PlainKernels(), TritonKernels()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel is to fill is full of NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(made: torch.Tensor) -> torch.Tensor:
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(-7)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9)
    assert float(error) < TOLERANCE[expected.dtype], float(error)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("lines", "size"), [(1, 64), (3, 80), (5, 1000), (200, 16)])
def test_norms(dtype: torch.dtype, lines: int, size: int) -> None:
    x, residual, weight = (
        draw(lines, size, dtype=dtype),
        draw(lines, size, dtype=dtype, seed=1),
        draw(size, dtype=dtype),
    )
    close(TRITON.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    expected, total = PLAIN.add_rms_norm(x, residual, weight, 1e-5)
    found, new_residual = TRITON.add_rms_norm(x, residual.clone(), weight, 1e-5)
    close(found, expected)
    assert torch.equal(new_residual, total)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (4, 1500), (3, 1024)])
def test_gated(dtype: torch.dtype, kind: str, tokens: int, width: int) -> None:
    x = draw(tokens, 2 * width, dtype=dtype) * 3
    close(TRITON.gated(x, kind), PLAIN.gated(x, kind))


@pytest.mark.parametrize("half", [4, 20, 64])
def test_turns(half: int) -> None:
    positions = torch.tensor([0, 1, 77, 130_000], device=DEVICE, dtype=torch.int32)
    frequency = 1.0 / 500_000 ** (torch.arange(half, device=DEVICE) / half)
    found = TRITON.turns(positions, frequency, 1.3, torch.float32)
    for a, b in zip(found, PLAIN.turns(positions, frequency, 1.3, torch.float32), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", FORMATS)
def test_norm_turn_store(seed: int, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    kv_heads, group, dim, page = (
        rng.choice([1, 2, 3]),
        rng.choice([1, 3, 4]),
        rng.choice([8, 24, 64]),
        rng.choice([1, 8]),
    )
    heads, tokens, blocks = kv_heads * group, rng.choice([1, 5, 13]), 20
    qkv = draw(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype, seed=seed)
    weights = draw(2, dim, dtype=dtype, seed=1)
    norms = (weights[0], weights[1], 1e-6) if seed % 3 else None
    positions = torch.tensor([rng.randrange(5000) for _ in range(tokens)], device=DEVICE)
    frequency = 1.0 / 10_000 ** (torch.arange(dim // 2, device=DEVICE) / (dim / 2))
    turn = PLAIN.turns(positions, frequency, 1.0, dtype) if seed % 4 else None
    kv = torch.full((blocks, 2, kv_heads, page, dim), torch.nan, device=DEVICE, dtype=dtype)
    slots = torch.tensor(rng.sample(range(blocks * page), tokens), device=DEVICE)
    q, k, v = split_heads(qkv, norms, turn, heads, kv_heads, dim)
    untouched = qkv.clone()
    norm_turn_store(untouched, norms, turn, kv, slots, heads)
    close(untouched.view(tokens, -1, dim)[:, :heads], q)
    for kind, expected in enumerate((k, v)):
        close(kv[slots // page, kind, :, slots % page], expected)
    assert int(kv.isfinite().sum()) == 2 * tokens * kv_heads * dim, "nothing else was written"


def tables(rng: random.Random, num_rows: int, length: int, page: int) -> tuple[torch.Tensor, ...]:
    """tokens, blocks, computed of random rows; the last row is the null row."""
    tokens = torch.tensor([[rng.randrange(1000) for _ in range(length + 1)] for _ in range(num_rows + 1)])
    blocks = torch.tensor([[rng.randrange(1, 500) for _ in range(length // page + 1)] for _ in range(num_rows + 1)])
    computed = torch.tensor([rng.randrange(length - 20) for _ in range(num_rows)] + [0])
    tokens[-1], blocks[-1] = 0, 0
    return tuple(t.int().to(DEVICE) for t in (tokens, blocks, computed))


@pytest.mark.parametrize("seed", range(6))
def test_gather(seed: int) -> None:
    rng = random.Random(seed)
    page = rng.choice([1, 4, 16])
    tokens, blocks, computed = tables(rng, 12, 200, page)
    rows = rng.sample(range(12), rng.randint(1, 12))
    counts = [rng.choice([1, 2, 19]) for _ in rows]
    starts = torch.tensor([0, *counts]).cumsum(0)
    requests = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    on = [torch.tensor(rows).int(), starts.int(), requests.int()]
    ids, positions, slots, kv_lens = gather(*[t.to(DEVICE) for t in on], computed, tokens, blocks, page)
    at = 0
    for row, count, kv_len in zip(rows, counts, kv_lens.tolist(), strict=True):
        done = int(computed[row])
        assert kv_len == done + count
        for position in range(done, done + count):
            assert positions[at] == position
            assert ids[at] == tokens[row, position]
            assert slots[at] == blocks[row, position // page] * page + position % page
            at += 1
    assert at == len(ids)


@pytest.mark.parametrize("num", [1, 3, 8])
def test_a_captured_step_begins_and_ends(num: int) -> None:
    """Three steps of `num` places, of which one is padding, over a ring of two slots."""
    rng = random.Random(num)
    page, most, num_rows = 4, 8, 10
    tokens, blocks, computed = tables(rng, num_rows, 60, page)
    lens = computed + 1
    inbox, outbox = torch.zeros(2, 2, most, dtype=torch.int32), torch.zeros(2, most, dtype=torch.int32)
    if GPU:
        inbox, outbox = inbox.pin_memory(), outbox.pin_memory()
    counter = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    rows, ids, positions, kv_lens = torch.full((4, num), -1, dtype=torch.int32, device=DEVICE).unbind()
    slots = torch.full((num,), -1, device=DEVICE)
    for step in range(3):
        used = rng.sample(range(num_rows), max(1, num - 1)) + [num_rows] * (num - max(1, num - 1))
        inbox[step % 2, 0, :num] = torch.tensor(used)
        inbox[step % 2, 1, :num] = torch.tensor(
            [rng.choice([0, 700 + i]) if row < num_rows else 0 for i, row in enumerate(used)]
        )
        new, before = inbox[step % 2, 1].clone(), (tokens.clone(), blocks.clone(), computed.clone(), lens.clone())
        begin(inbox, counter, rows, ids, positions, slots, kv_lens, computed, tokens, blocks, page)
        sampled = torch.tensor([rng.randrange(1000) for _ in range(num)], device=DEVICE)
        append(sampled, rows, lens, tokens, outbox, counter)
        if GPU:
            torch.cuda.synchronize()
        assert outbox[step % 2, :num].tolist() == sampled.tolist()
        for i, row in enumerate(used):
            done = int(before[2][row])
            block = int(new[i]) or int(before[1][row, done // page])
            assert (rows[i], ids[i], positions[i], kv_lens[i]) == (row, before[0][row, done], done, done + 1)
            assert slots[i] == block * page + done % page
            if row == num_rows:
                assert computed[row] == 0
                assert lens[row] == before[3][row]
                continue
            assert blocks[row, done // page] == block
            assert computed[row] == done + 1
            assert lens[row] == before[3][row] + 1
            assert tokens[row, int(before[3][row])] == sampled[i]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("lines", "inner", "width"), [(1, 64, 32), (1, 96, 8), (1, 300, 16), (1, 1024, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_gemv(dtype: torch.dtype, lines: int, inner: int, width: int, biased: bool) -> None:
    x, weight = draw(lines, inner, dtype=dtype) / inner**0.5, draw(2 * width, inner, dtype=dtype, seed=1)
    bias = draw(2 * width, dtype=dtype, seed=2) if biased else None
    tiles = GemvTiles(rows=2, block=128, warps=2)
    close(gemv(x, weight, bias, tiles), PLAIN.linear(x, weight, bias))
    close(gated_gemv(x, weight, "silu", tiles), PLAIN.gated(PLAIN.linear(x, weight, None), "silu"))
