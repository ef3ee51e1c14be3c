"""Paged attention of several query tokens per request, in Triton: FlashAttention 2 (Dao 2023) over a block table.

One program takes a tile of queries of one request and one KV head. The query heads that share the KV head are lines of
the same tile, so K and V are read once for all of them:

    lines of a tile   | token 0: head 0, head 1, .. | token 1: head 0, .. | ...
    keys              [0, seen by all) no mask | [seen by all, end) masked by position
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import soft_capped
from quire.worker.kernels.launch import dependent_launch, next_power_of_2

NEGATIVE = tl.constexpr(-1.0e30)


@triton.jit
def _tile(
    start, queries, most, mass, sums, table, kv, head_at, kind_stride, block_stride, scale, soft_cap, window,
    positions, end,
    DIM: tl.constexpr, DIM_P: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: the running maximum, mass and weighted sums of every line."""
    key = start + tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM_P)
    there = key < end
    block = tl.load(table + key // PAGE, mask=there, other=0).to(tl.int64)
    at = block * block_stride + head_at + (key % PAGE) * DIM
    if MASK or DIM != DIM_P:
        keys = tl.load(kv + at[None, :] + dim[:, None], mask=there[None, :] & (dim[:, None] < DIM), other=0.0)
    else:
        keys = tl.load(kv + at[None, :] + dim[:, None])
    scores = tl.dot(queries, keys, input_precision=PRECISION) * scale
    if SOFT_CAP:
        scores = soft_capped(scores, soft_cap) * 1.4426950408889634
    if MASK:
        seen = (key[None, :] <= positions[:, None]) & there[None, :]
        if WINDOW:
            seen = seen & (key[None, :] > positions[:, None] - window)
        scores = tl.where(seen, scores, NEGATIVE)
    new_most = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores - new_most[:, None])
    if MASK:
        weights = tl.where(seen, weights, 0.0)
    shrink = tl.exp2(most - new_most)
    if MASK or DIM != DIM_P:
        values = tl.load(
            kv + kind_stride + at[:, None] + dim[None, :], mask=there[:, None] & (dim[None, :] < DIM), other=0.0
        )
    else:
        values = tl.load(kv + kind_stride + at[:, None] + dim[None, :])
    sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None], input_precision=PRECISION)
    return new_most, mass * shrink + tl.sum(weights, 1), sums


@triton.jit(
    do_not_specialize=["window"],
    do_not_specialize_on_alignment=["rows", "query_starts", "kv_lens", "tile_requests", "tile_starts"],
)
def _attend(
    q, kv, out, tables, rows, query_starts, kv_lens, tile_requests, tile_starts,
    scale, soft_cap, window, q_stride, table_stride, block_stride, kind_stride, head_stride,
    NUM_KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr, PAGE: tl.constexpr,
    LINES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TOKENS query tokens, TOKENS * GROUP of the LINES lines are used.

    The next kernel may come once all that this one reads is there, since decode attention beside it reads the same.
    """
    head, tile = tl.program_id(0), tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    request, offset = tl.load(tile_requests + tile), tl.load(tile_starts + tile)
    if request < 0:
        return
    begin = tl.load(query_starts + request)
    count = tl.load(query_starts + request + 1) - begin
    before = tl.load(kv_lens + request) - count  # tokens that were there before this step
    table = tables + tl.load(rows + request).to(tl.int64) * table_stride
    line = tl.arange(0, LINES)
    token = offset + line // GROUP
    used = (line < TOKENS * GROUP) & (token < count)
    positions = before + token
    dim = tl.arange(0, DIM_P)
    heads_at = (head * GROUP + line[:, None] % GROUP) * DIM + dim[None, :]
    mask = used[:, None] & (dim[None, :] < DIM)
    at = (begin + token).to(tl.int64)[:, None]
    queries = tl.load(q + at * q_stride + heads_at, mask=mask, other=0.0)  # [LINES, DIM_P]
    most = tl.full((LINES,), NEGATIVE, tl.float32)
    mass = tl.zeros((LINES,), tl.float32)
    sums = tl.zeros((LINES, DIM_P), tl.float32)
    head_at = head * head_stride
    low = 0
    end = before + tl.minimum(offset + TOKENS, count)
    all_see = (before + offset + 1) // BLOCK * BLOCK
    if WINDOW:
        low = tl.maximum(before + offset - window + 1, 0) // BLOCK * BLOCK
        all_see = low
    for start in range(low, all_see, BLOCK):
        most, mass, sums = _tile(
            start, queries, most, mass, sums, table, kv, head_at, kind_stride, block_stride, scale, soft_cap, window,
            positions, end, DIM, DIM_P, PAGE, BLOCK, False, WINDOW, SOFT_CAP, PRECISION,
        )  # fmt: skip
    for start in range(all_see, end, BLOCK):
        most, mass, sums = _tile(
            start, queries, most, mass, sums, table, kv, head_at, kind_stride, block_stride, scale, soft_cap, window,
            positions, end, DIM, DIM_P, PAGE, BLOCK, True, WINDOW, SOFT_CAP, PRECISION,
        )  # fmt: skip
    result = sums / tl.where(mass > 0, mass, 1.0)[:, None]
    tl.store(out + at * (NUM_KV * GROUP * DIM) + heads_at, result.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """Compile-time choices: lines of a query tile, keys per step, warps, pipeline stages."""

    lines: int
    block: int
    warps: int
    stages: int

    def tokens(self, group: int) -> int:
        """Query tokens of one tile."""
        return self.lines // group


def prefill_attention(
    q: torch.Tensor,  # [tokens, num_heads, head_dim], lines may be apart
    kv: torch.Tensor,  # [blocks, 2, num_kv_heads, block_size, head_dim]
    out: torch.Tensor,  # [tokens, num_heads * head_dim]
    tables: torch.Tensor,  # [rows, blocks]
    rows: torch.Tensor,  # [requests]
    query_starts: torch.Tensor,  # [requests + 1]
    kv_lens: torch.Tensor,  # [requests]
    tile_requests: torch.Tensor,  # [tiles] request of each tile, -1 where none
    tile_starts: torch.Tensor,  # [tiles] its first query token, counted within the step's tokens of the request
    tile_tokens: int,  # query tokens of a tile
    tiles: PrefillTiles,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> None:
    """Attend causally for every query token of the tiles, into its line of `out`."""
    num_heads, dim = q.shape[1:]
    num_kv, page = kv.shape[2], kv.shape[3]
    group = num_heads // num_kv
    _attend[(num_kv, len(tile_requests))](
        q, kv, out, tables, rows, query_starts, kv_lens, tile_requests, tile_starts,
        scale if soft_cap else scale * 1.4426950408889634, soft_cap or 1.0, window or 0,
        q.stride(0), tables.stride(0), kv.stride(0), kv.stride(1), kv.stride(2),
        NUM_KV=num_kv, GROUP=group, DIM=dim, DIM_P=max(16, next_power_of_2(dim)), PAGE=page, LINES=tiles.lines,
        TOKENS=tile_tokens, BLOCK=tiles.block, WINDOW=window is not None, SOFT_CAP=soft_cap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps, num_stages=tiles.stages, **dependent_launch(q),
    )  # fmt: skip
