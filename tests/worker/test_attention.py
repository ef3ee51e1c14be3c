"""Backends against naive float64 attention: random mixed steps over a cache full of NaN."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from paged import Pages, Sequence

from quire.worker.attention.cpu_backend import CPUAttention
from quire.worker.attention.native_backend import NativeAttention
from quire.worker.attention.pieces import MAX_GATHER_TOKENS, chunk_pieces, decode_pieces
from quire.worker.attention.protocol import AttentionBackend, AttentionSpec, KVSpec
from quire.worker.attention.select import BACKENDS, backend_named, select_backend
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.batch import Batch
from quire.worker.kernels.native_build import find_compiler

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
KINDS = [CPUAttention, pytest.param(NativeAttention, marks=pytest.mark.native), TorchAttention]
PLACES = [
    pytest.param(CPUAttention, "cpu", id="cpu"),
    pytest.param(NativeAttention, "cpu", id="native", marks=pytest.mark.native),
    pytest.param(TorchAttention, "cpu", id="torch-cpu"),
    pytest.param(TorchAttention, "cuda", id="torch-cuda", marks=gpu),
]


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, start: int) -> torch.Tensor:
    """One request: q [queries, heads, dim] at positions start.., k and v [keys, kv_heads, dim]; one query at a time."""
    out = []
    group = spec.num_heads // spec.num_kv_heads
    for i, query in enumerate(q.double()):
        position = start + i
        low = 0 if spec.window is None else max(0, position - spec.window + 1)
        for head in range(spec.num_heads):
            keys, values = (x[low : position + 1, head // group].double() for x in (k, v))
            scores = keys @ query[head] * spec.scale
            if spec.soft_cap is not None:
                scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
            out.append(torch.softmax(scores, 0) @ values)
    return torch.stack(out).view(len(q), -1)


def attention(
    backend: AttentionBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, spec: AttentionSpec
) -> torch.Tensor:
    """What one layer does, without norms and turns."""
    qkv = torch.cat([x.flatten(1) for x in (q, k, v)], dim=1)
    return backend.attend(*backend.store(qkv, None, None, batch.kv[0], batch, spec), batch.kv[0], batch, spec)


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU is an error."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class World:
    """Sequences whose K and V are known, on pages of one backend."""

    def __init__(
        self, kind: type[AttentionBackend], spec: AttentionSpec, dtype: torch.dtype, seed: int, device: str = "cpu"
    ) -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.spec, self.dtype = spec, dtype
        self.backend = kind()
        self.backend.add_layer(spec)
        kv = KVSpec(spec.num_kv_heads, spec.head_dim, dtype)
        self.pages = Pages(self.backend, (kv,), 200, self.rng.choice([1, 4, 8, 16]), seed, device)
        self.sequences = [Sequence([0] * 10_000) for _ in range(self.rng.randint(1, 9))]
        self.known = (
            [self.draw(0, spec.num_kv_heads) for _ in self.sequences],
            [self.draw(0, spec.num_kv_heads) for _ in self.sequences],
        )

    def draw(self, count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, self.spec.head_dim, generator=self.generator).to(self.device, self.dtype)

    def step(self, slack: int) -> float:
        """One mixed step; the largest error."""
        chosen = self.rng.sample(range(len(self.sequences)), self.rng.randint(1, len(self.sequences)))
        room = len(self.pages.free) * self.pages.block_size // len(chosen)
        counts = [min(self.rng.choice([1, 1, 1, 2, 3, 9, 17, 40]), max(room - 1, 1)) for _ in chosen]
        starts = [self.sequences[i].computed for i in chosen]
        batch = self.pages.batch([(self.sequences[i], n) for i, n in zip(chosen, counts, strict=True)], slack)
        q, k, v = (
            self.draw(sum(counts), n) for n in (self.spec.num_heads, self.spec.num_kv_heads, self.spec.num_kv_heads)
        )
        with no_waiting(self.device):
            batch = replace(batch, attention_plan=self.backend.plan(batch))
            out = attention(self.backend, q, k, v, batch, self.spec)
        assert out.shape == (sum(counts), self.spec.num_heads * self.spec.head_dim)
        errors = []
        parts = (x.split(counts) for x in (q, k, v, out))
        for i, start, q_i, k_i, v_i, out_i in zip(chosen, starts, *parts, strict=True):
            for known, new in zip(self.known, (k_i, v_i), strict=True):
                known[i] = torch.cat((known[i], new))
            expected = naive(q_i, self.known[0][i], self.known[1][i], self.spec, start)
            errors.append((out_i - expected).abs().max())
        return float(torch.stack(errors).max())  # NaN if any is NaN


@pytest.mark.parametrize(("kind", "device"), PLACES)
@pytest.mark.parametrize("seed", range(40))
def test_random_mixed_steps(kind: type[AttentionBackend], device: str, seed: int) -> None:
    rng = random.Random(seed)
    kv_heads, group, dim = rng.choice([1, 2, 3]), rng.choice([1, 2, 4]), rng.choice([8, 16, 64])
    spec = AttentionSpec(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=dim,
        scale=rng.choice([dim**-0.5, 0.3]),
        window=rng.choice([None, None, 1, 7, 16, 33, 1000]),
        soft_cap=rng.choice([None, None, 5.0]),
    )
    dtype, tolerance = rng.choice([(torch.float32, 2e-5), (torch.float64, 1e-9), (torch.bfloat16, 0.06)])
    if kind is NativeAttention and dtype == torch.float64:
        dtype, tolerance = torch.float32, 2e-5
    world = World(kind, spec, dtype, seed, device)
    with torch.inference_mode():
        for _ in range(6):
            error = world.step(slack=rng.choice([0, 0, 5]))
            assert error < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_hidden_positions_do_not_matter(kind: type[AttentionBackend]) -> None:
    """Infinities and NaN behind the length and before the window leave the output as it is, bit for bit."""
    spec = AttentionSpec(4, 2, 16, 0.25, window=20)
    pages = Pages(kind(), (KVSpec(2, 16, torch.float32),), 40, 8)
    sequences = [Sequence([0] * 200) for _ in range(3)]
    torch.manual_seed(0)

    def run(work: list[tuple[Sequence, int]]) -> torch.Tensor:
        batch = pages.batch(work)
        tokens = sum(n for _, n in work)
        q, k, v = torch.randn(tokens, 4, 16), torch.randn(tokens, 2, 16), torch.randn(tokens, 2, 16)
        before = batch.kv[0].clone()
        outs = []
        for poison in (torch.nan, torch.inf, 0.0):
            batch.kv[0].copy_(torch.where(before.isfinite(), before, poison))
            outs.append(attention(pages.backend, q, k, v, batch, spec))
        batch.kv[0].copy_(torch.where(before.isfinite() | batch.kv[0].ne(0), batch.kv[0], torch.nan))
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])
        return outs[0]

    assert run([(sequences[0], 30), (sequences[1], 1), (sequences[2], 13)]).isfinite().all()
    for _ in range(3):
        assert run([(sequences[0], 1), (sequences[1], 5), (sequences[2], 1)]).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_window_has_passed_may_turn_to_nan(kind: type[AttentionBackend]) -> None:
    spec = AttentionSpec(4, 2, 16, 0.25, window=8)
    pages = Pages(kind(), (KVSpec(2, 16, torch.float32),), 40, 16)
    sequence = Sequence([0] * 100)
    for count in (20, 5, 1, 1, 3):
        batch = pages.batch([(sequence, count)])
        q, k, v = torch.randn(count, 4, 16), torch.randn(count, 2, 16), torch.randn(count, 2, 16)
        if count == 20:
            k[:12], v[:12] = torch.nan, torch.nan
        out = attention(pages.backend, q, k, v, batch, spec)
        assert out.isfinite().all() or count == 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 10])
def test_a_long_chunk_is_cut_and_still_right(kind: type, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.worker.attention.pieces.MAX_SCORES", 400)
    world = World(kind, AttentionSpec(2, 1, 16, 0.25, window=window), torch.float32, 3)
    with torch.inference_mode():
        assert max(world.step(0) for _ in range(6)) < 2e-5


def test_pieces_cover_every_token_once_and_pad_little() -> None:
    rng = random.Random(0)
    pages = Pages(TorchAttention(), (), 3000, 16)
    for _ in range(20):
        work = []
        for _ in range(rng.randint(1, 30)):
            sequence = Sequence([0] * 1500, computed=rng.randrange(1000))
            sequence.blocks = [1] * 94
            work.append((sequence, rng.choice([1, 1, 1, 1, 30, 200])))
        batch = pages.batch(work)
        pieces = [*decode_pieces(batch), *chunk_pieces(batch)]
        covered = [token + i for piece in pieces for token in piece.tokens for i in range(piece.count)]
        assert sorted(covered) == list(range(sum(batch.counts)))
        for piece in decode_pieces(batch):
            bounds = [batch.kv_bounds[i] for i in piece.requests]
            assert max(bounds) == piece.bound <= min(bounds) * 1.25 + 32
            assert piece.bound * len(bounds) <= MAX_GATHER_TOKENS


def test_one_table_selects() -> None:
    assert select_backend(torch.device("cpu")).name == "cpu"
    for name in BACKENDS:
        if name == "native" and find_compiler() is None:
            continue
        if name != "triton" or importlib.util.find_spec("triton"):
            assert backend_named(name).name == name
