"""The Triton backend against naive float64 attention, over a cache full of NaN."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from paged import Pages, Sequence
from test_attention import World, attention

from quire.worker.attention import triton_backend
from quire.worker.attention.protocol import AttentionSpec, KVSpec
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.attention.triton_backend import TritonAttention
from quire.worker.kernels.decode_attention import plan_decode

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FORMATS = [(torch.float32, 2e-5), (torch.float16, 0.01), *([(torch.bfloat16, 0.06)] if GPU else [])]


@pytest.mark.parametrize("seed", range(60 if GPU else 25))
def test_random_mixed_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(triton_backend, "MIN_SPLIT", rng.choice([16, 64]))
    if rng.random() < 0.6:  # splits are multiples of a tile
        cuts = {
            size: tuple(replace(cut, tiles=replace(cut.tiles, block=16)) for cut in triton_backend.CUTS[size])
            for size in (2, 4)
        }
        monkeypatch.setattr(triton_backend, "CUTS", cuts)
    fill = rng.choice([0, 1.5, 9])
    monkeypatch.setattr(triton_backend.TritonAttention, "_fill", lambda *_: fill)
    processors = rng.choice([2, 8, 40])
    monkeypatch.setattr(triton_backend.TritonAttention, "_num_processors", lambda *_: processors)
    kv_heads, group, dim = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 4, 7]), rng.choice([8, 16, 64, 80])
    spec = AttentionSpec(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=dim,
        scale=rng.choice([dim**-0.5, 0.3]),
        window=rng.choice([None, None, 1, 7, 16, 33, 1000]),
        soft_cap=rng.choice([None, None, 5.0]),
    )
    dtype, tolerance = rng.choice(FORMATS)
    world = World(TritonAttention, spec, dtype, seed, DEVICE)
    with torch.inference_mode():
        for _ in range(5):
            assert world.step(slack=rng.choice([0, 0, 5])) < tolerance


@pytest.mark.parametrize("window", [None, 100])
def test_long_beside_short(window: int | None) -> None:
    """One request is split many times over, the others not at all; every partial result is used once."""
    spec = AttentionSpec(4, 2, 16, 0.25, window=window)
    lens = [3000, 5, 40, 1, 700] if GPU else [900, 5, 40, 1, 200]
    kv = KVSpec(2, 16, torch.float32)
    outs = []
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, heads, 16, generator=generator).to(DEVICE) for heads in (4, 2, 2))
    for kind in (TritonAttention, TorchAttention):
        pages = Pages(kind(), (kv,), 400, 16, device=DEVICE)
        pages.backend.add_layer(spec)
        sequences = [Sequence([0] * 4000) for _ in lens]
        old = [n for n in lens if n > 1]
        batch = pages.batch([(s, n - 1) for s, n in zip(sequences, lens, strict=True) if n > 1])
        filler = torch.Generator().manual_seed(1)
        first = [torch.randn(sum(old) - len(old), heads, 16, generator=filler).to(DEVICE) for heads in (4, 2, 2)]
        attention(pages.backend, *first, batch, spec)
        for _ in range(2):  # the second finds the scratch as the first left it
            out = attention(pages.backend, q, k, v, pages.batch([(s, 1) for s in sequences]), spec)
            outs.append(out)
            for s in sequences:
                s.computed -= 1
    for out in outs[1:]:
        assert torch.allclose(out, outs[0], atol=2e-5)


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_covers_every_token_once(seed: int) -> None:
    rng = random.Random(seed)
    num, extra = rng.choice([1, 2, 7, 30]), rng.choice([1, 4, 40])
    padding, whole_from = rng.choice([0, 0, 3]), rng.choice([2, 100])
    lens = [rng.choice([1, 5, 64, 300, 5000]) for _ in range(num + 3)]
    requests = rng.sample(range(num + 3), num)
    plan = plan_decode(
        torch.tensor(requests + [-1] * padding).int().to(DEVICE),
        torch.tensor(lens).int().to(DEVICE),
        extra,
        rng.choice([16, 64]),
        16,
        whole_from,
    )
    split, items, parts = int(plan.split), plan.items.tolist(), plan.parts.tolist()
    assert split % 16 == 0
    assert len(items) == num + padding + extra
    places: set[int] = set()
    at = 0
    for line, request in enumerate(requests):
        count = max(1, -(-lens[request] // split))
        assert plan.first[line] == at
        assert items[at : at + count] == [line] * count
        at += count
        if count > 1:
            own = set(range(parts[line], parts[line] + count))
            assert not places & own
            places |= own
    assert plan.first[num] == at
    assert items[at:] == [-1] * (num + padding + extra - at)
    assert not places or max(places) < 2 * extra
