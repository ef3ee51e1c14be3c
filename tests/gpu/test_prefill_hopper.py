"""The Hopper kernel against the plain formula, on the GPU: pages in any order, what nobody wrote is no number."""

from __future__ import annotations

import math

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.__version__.startswith("3.6."):
    pytest.skip("the kernel is written for Triton 3.6", allow_module_level=True)

from quire.worker.kernels import prefill_hopper  # noqa: E402
from quire.worker.kernels.prefill_hopper import prefill_attention_hopper  # noqa: E402

pytestmark = pytest.mark.gpu
CASES = [
    ([1], [0]),
    ([33], [0]),
    ([128], [0]),
    ([127, 1, 129], [1, 127, 128]),
    ([130, 7, 1000], [0, 300, 77]),
    ([5, 600], [3, 1234]),
    ([2, 64, 3000], [4095, 1, 2500]),
]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: int) -> torch.Tensor:
    """q [n, heads, dim], k and v [before + n, kv_heads, dim] -> [n, heads * dim], in float32."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.float().transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(q.shape[2])
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(before + 1)
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return (weights @ values).transpose(0, 1).flatten(1)


@pytest.mark.parametrize(("counts", "befores"), CASES)
@pytest.mark.parametrize(
    "heads", [(32, 8, 128, 16), (16, 8, 128, 16), (8, 8, 128, 32), (32, 8, 64, 16), (28, 4, 128, 64)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_against_the_formula(
    counts: list[int], befores: list[int], heads: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    num_heads, num_kv, dim, page = heads
    device = torch.device("cuda")
    if not prefill_hopper.fits(dim, page, dtype, device):
        pytest.skip("not a Hopper GPU")
    torch.manual_seed(len(counts) + sum(counts))
    lens = [before + count for before, count in zip(befores, counts, strict=True)]
    num_blocks = [-(-n // page) for n in lens]
    kv = torch.full((sum(num_blocks) + 1, 2, num_kv, page, dim), math.nan, dtype=dtype, device=device)
    order = torch.randperm(sum(num_blocks), device=device).int() + 1
    tables = torch.zeros(len(lens) + 1, max(num_blocks) + 128 // page, dtype=torch.int32, device=device)
    stored, at = [], 0
    for row, (n, blocks) in enumerate(zip(lens, num_blocks, strict=True)):
        mine, at = order[at : at + blocks], at + blocks
        tables[row, :blocks] = mine
        place = torch.arange(n, device=device)
        k, v = torch.randn(2, n, num_kv, dim, dtype=dtype, device=device)
        kv[mine.long()[place // page], 0, :, place % page] = k
        kv[mine.long()[place // page], 1, :, place % page] = v
        stored.append((k, v))
    qkv = torch.randn(sum(counts), num_heads + 2 * num_kv, dim, dtype=dtype, device=device)
    q = qkv[:, :num_heads]
    tokens = prefill_hopper.LINES // (num_heads // num_kv)
    tiles = [(request, start) for request, count in enumerate(counts) for start in range(0, count, tokens)] + [(-1, 0)]
    whose, first = torch.tensor(tiles, dtype=torch.int32, device=device).unbind(1)
    out = torch.full((sum(counts), num_heads * dim), math.nan, dtype=dtype, device=device)
    starts = torch.tensor([0, *counts], device=device).cumsum(0).int()
    rows = torch.arange(len(counts), dtype=torch.int32, device=device)
    kv_lens = torch.tensor(lens, dtype=torch.int32, device=device)
    prefill_attention_hopper(
        q, kv, out, tables, rows, starts, kv_lens, whose.contiguous(), first.contiguous(), tokens,
        scale=1 / math.sqrt(dim),
    )  # fmt: skip
    for mine, (k, v), before, got in zip(q.split(counts), stored, befores, out.split(counts), strict=True):
        torch.testing.assert_close(got.float(), reference(mine, k, v, before), atol=0.02, rtol=0.02)
