"""Decode and prefill attention of one step run together on the chip; the numbers are those of one after the other."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from paged import Pages, Sequence
from test_attention import attention

from quire.worker.attention import triton_backend
from quire.worker.attention.protocol import AttentionSpec, KVSpec
from quire.worker.attention.triton_backend import TritonAttention

pytestmark = pytest.mark.gpu
LAYERS, ROUNDS = 6, 50


@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.bfloat16, None), (torch.bfloat16, 100), (torch.float16, None), (torch.float32, None)]
)
@pytest.mark.parametrize("work", [[1] * 31 + [128], [1] * 3 + [700, 40], [1] * 200 + [512] * 4])
def test_together_is_one_after_the_other(
    work: list[int], dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured chain of layers, each of which reads what the one before wrote, with other numbers every time."""
    spec = AttentionSpec(32, 8, 128, 128**-0.5, window=window)
    torch.manual_seed(0)
    pages = Pages(TritonAttention(), (KVSpec(8, 128, dtype),) * LAYERS, 64 * len(work), 16, device="cuda")
    pages.backend.add_layer(spec)
    sequences = [Sequence([0] * 4000, computed=0) for _ in work]
    old = pages.batch([(s, 100 + 7 * (i % 90)) for i, s in enumerate(sequences)])
    for layer in range(LAYERS):
        q, k, v = (torch.randn(int(old.query_starts[-1]), heads, 128, device="cuda").to(dtype) for heads in (32, 8, 8))
        _layer(pages, q, k, v, old, spec, layer)
    batch = pages.batch(list(zip(sequences, work, strict=True)))
    static = torch.empty(sum(work), 48, 128, dtype=dtype, device="cuda")

    def chain() -> torch.Tensor:
        hidden = static
        for layer in range(LAYERS):
            q, k, v = hidden.split((32, 8, 8), dim=1)
            out = _layer(pages, q, k, v, batch, spec, layer).view(-1, 32, 128)
            hidden = torch.cat([out + q, out[:, :8], out[:, 8:16] + v], dim=1)
        return hidden

    together, apart = triton_backend.decode_attention, _apart(triton_backend.decode_attention)
    graphs = []
    for kernel in (together, apart):
        monkeypatch.setattr(triton_backend, "decode_attention", kernel)
        static.normal_()
        chain()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain()
        graphs.append((graph, out))
    for _ in range(ROUNDS):
        static.normal_()
        results = []
        for graph, out in graphs:
            graph.replay()
            results.append(out.clone())
        assert not results[0].isnan().any()
        assert torch.equal(*results)


def _layer(pages: Pages, q, k, v, batch, spec: AttentionSpec, layer: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return attention(pages.backend, q, k, v, replace(batch, kv=(batch.kv[layer],)), spec)


def _apart(kernel):  # type: ignore[no-untyped-def]
    def call(*args: object, beside: bool, **how: object) -> None:
        kernel(*args, beside=False, **how)

    return call
