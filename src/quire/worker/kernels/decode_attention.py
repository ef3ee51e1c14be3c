"""Paged attention of one query token per request, in Triton: flash decoding (Dao et al. 2023) with splits that the
device chooses from the true lengths.

A plan, once per step, cuts all requests into items of at most `split` tokens, so that there are at most `extra` more
items than requests and the chip is full whatever the lengths are. One program takes one item and one KV head, with
all query heads of that head as lines of one product. Whoever finishes last of a request merges its parts.

    request   | 0 (long)           | 1   | 2 (long)    | ...
    first     | 0                  | 4   | 5           |           first item of each request, [requests + 1]
    items     | 0 | 0 | 0 | 0      | 1   | 2 | 2 | 2   | -1 -1     request of each item
    parts     | 0 | 1 | 2 | 3      | -   | 4 | 5 | 6   |           place of its partial result; whole ones need none
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import soft_capped
from quire.worker.kernels.launch import dependent_launch, next_power_of_2, padded

NEGATIVE = tl.constexpr(-1.0e30)
"""Stands for -inf where differences are taken."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The items of one step. All int32.

    Attributes:
        requests: [n] which requests of the batch decode.
        first: [n + 1] first item of each.
        parts: [n] place of each one's first partial result.
        items: [n + extra] index into `requests`, -1 beyond the last.
        split: [1] tokens per item.
    """

    requests: torch.Tensor
    first: torch.Tensor
    parts: torch.Tensor
    items: torch.Tensor
    split: torch.Tensor


@triton.jit(
    do_not_specialize=["num", "extra", "min_split", "whole_from"],
    do_not_specialize_on_alignment=["requests", "kv_lens", "first", "parts", "items", "split_out"],
)
def _plan(
    requests, kv_lens, first, parts, items, split_out, num, extra, min_split, whole_from,
    STEP: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program. Sum of ceil(len / split) <= num + extra, because split >= total / extra. From `whole_from` requests
    on, those of about the mean length are left in one piece: there are enough of them."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.arange(0, BLOCK)
    inside = index < num
    if PDL:
        tl.extra.cuda.gdc_wait()
    request = tl.load(requests + index, mask=inside, other=-1)
    valid = request >= 0
    length = tl.load(kv_lens + request, mask=valid, other=0)
    num_valid = tl.sum(valid.to(tl.int32), 0)
    total = tl.sum(length, 0)
    split = tl.maximum(tl.cdiv(total, extra), min_split)
    if num_valid >= whole_from:
        split = tl.maximum(split, (total // num_valid) * 5 // 4)
    split = tl.cdiv(split, STEP) * STEP
    count = tl.where(valid, tl.maximum(tl.cdiv(length, split), 1), 0)
    end = tl.cumsum(count, 0)
    start = end - count
    split_count = tl.where(count > 1, count, 0)
    tl.store(first + index, start, mask=inside)
    tl.store(first + index + 1, end, mask=inside)  # where it overlaps with the line above, the value is the same
    tl.store(parts + index, tl.cumsum(split_count, 0) - split_count, mask=inside)
    tl.store(split_out, split)
    num_items = tl.sum(count, 0)
    for part in range(tl.max(count, 0)):
        tl.store(items + start + part, index, mask=valid & (part < count))
    beyond = tl.arange(0, TAIL)
    tl.store(items + beyond, -1, mask=(beyond >= num_items) & (beyond < num + extra))


def plan_decode(
    requests: torch.Tensor, kv_lens: torch.Tensor, extra: int, min_split: int, step: int, whole_from: int = 1 << 30
) -> DecodePlan:
    """Cut these requests [n] of a batch with `kv_lens` into items; `split` is a multiple of `step`.

    Entries of -1 at the end are nobody. With `whole_from` requests the chip is full, so only those well above the mean
    length are cut.
    """
    num = len(requests)
    made = torch.empty(3 * num + 2 + extra, dtype=torch.int32, device=requests.device)
    first, parts, items, split = made.split([num + 1, num, num + extra, 1])
    _plan[(1,)](
        requests, kv_lens, first, parts, items, split, num, extra, min_split, whole_from, STEP=step, BLOCK=padded(num),
        TAIL=padded(num + extra), num_warps=4, **dependent_launch(requests),
    )  # fmt: skip
    return DecodePlan(requests, first, parts, items, split)


@triton.jit
def _load_tile(
    table, kv, head_at, kind_stride, block_stride, start, high,
    DIM: tl.constexpr, DIM_P: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys [DIM_P, BLOCK], values [BLOCK, DIM_P] and their place, of positions start .. high."""
    position = start + tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM_P)
    there = position < high
    block = tl.load(table + position // PAGE, mask=there, other=0).to(tl.int64)
    at = block * block_stride + head_at + (position % PAGE) * DIM
    keys = tl.load(kv + at[None, :] + dim[:, None], mask=there[None, :] & (dim[:, None] < DIM), other=0.0)
    values = tl.load(
        kv + kind_stride + at[:, None] + dim[None, :], mask=there[:, None] & (dim[None, :] < DIM), other=0.0
    )
    return keys, values


@triton.jit
def _take_in(
    queries, keys, values, most, mass, sums, start, low, high, scale, soft_cap,
    BLOCK: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile more, of which positions low .. high count: running maximum, mass and weighted sums of each line."""
    position = start + tl.arange(0, BLOCK)
    seen = (position >= low) & (position < high)
    scores = tl.dot(queries, keys, input_precision=PRECISION) * scale
    if SOFT_CAP:
        scores = soft_capped(scores, soft_cap) * 1.4426950408889634
    scores = tl.where(seen[None, :], scores, NEGATIVE)
    new_most = tl.maximum(most, tl.max(scores, 1))
    weights = tl.where(seen[None, :], tl.exp2(scores - new_most[:, None]), 0.0)
    shrink = tl.exp2(most - new_most)
    sums = sums * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return new_most, mass * shrink + tl.sum(weights, 1), sums


@triton.jit(
    do_not_specialize=["window"],
    do_not_specialize_on_alignment=[
        "rows", "query_starts", "kv_lens", "requests", "first", "parts", "items", "split_len",
    ],
)  # fmt: skip
def _attend(
    q, kv, out, tables, rows, query_starts, kv_lens, requests, first, parts, items, split_len, partial, partial_lse,
    arrivals, scale, soft_cap, window, q_stride, table_stride, block_stride, kind_stride, head_stride,
    NUM_KV: tl.constexpr, GROUP: tl.constexpr, GROUP_P: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """One item and one KV head; scores are kept in units of log2.

    EARLY reads the first tile before the wait, all but the newest token: that one is still being written.
    BESIDE runs together with the kernel launched before, which writes other lines of `out` and let this one come only
    when all that both read was there. The last line of programs waits for it, so whoever comes next waits for both.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    head, item = tl.program_id(0), tl.program_id(1)
    if BESIDE and item == tl.num_programs(1) - 1:
        tl.extra.cuda.gdc_wait()
        return
    # Before the wait: all of this is older than the kernel that wrote q and the newest k and v.
    line = tl.load(items + item)
    if line < 0:
        return
    request = tl.load(requests + line)
    length = tl.load(kv_lens + request)
    begin_item, end_item = tl.load(first + line), tl.load(first + line + 1)
    split = tl.load(split_len)
    table = tables + tl.load(rows + request).to(tl.int64) * table_stride
    token = tl.load(query_starts + request).to(tl.int64)
    start = (item - begin_item) * split
    low, high = start, tl.minimum(start + split, length)
    if WINDOW:
        low = tl.maximum(low, length - window)
        start = tl.maximum(start, low // BLOCK * BLOCK)
    group = tl.arange(0, GROUP_P)
    dim = tl.arange(0, DIM_P)
    used = (group[:, None] < GROUP) & (dim[None, :] < DIM)
    heads_at = (head * GROUP + group[:, None]) * DIM + dim[None, :]
    head_at = head * head_stride
    if EARLY:
        keys, values = _load_tile(
            table, kv, head_at, kind_stride, block_stride, start, tl.minimum(high, length - 1), DIM, DIM_P, PAGE, BLOCK
        )
    if PDL and not BESIDE:
        tl.extra.cuda.gdc_wait()
    queries = tl.load(q + token * q_stride + heads_at, mask=used, other=0.0, cache_modifier=".cg")  # [GROUP_P, DIM_P]
    most = tl.full((GROUP_P,), NEGATIVE, tl.float32)
    mass = tl.zeros((GROUP_P,), tl.float32)
    sums = tl.zeros((GROUP_P, DIM_P), tl.float32)
    if EARLY:
        if (start < high) & (high == length) & (length - 1 < start + BLOCK):  # the newest token is in this tile
            newest = tl.load(table + (length - 1) // PAGE).to(tl.int64) * block_stride
            newest += head_at + ((length - 1) % PAGE) * DIM
            is_newest = start + tl.arange(0, BLOCK) == length - 1
            key = tl.load(kv + newest + dim, mask=dim < DIM, other=0.0)
            value = tl.load(kv + newest + kind_stride + dim, mask=dim < DIM, other=0.0)
            keys = tl.where(is_newest[None, :], key[:, None], keys)
            values = tl.where(is_newest[:, None], value[None, :], values)
        most, mass, sums = _take_in(
            queries, keys, values, most, mass, sums, start, low, high, scale, soft_cap, BLOCK, SOFT_CAP, PRECISION
        )
        start += BLOCK
    for at in range(start, high, BLOCK):
        keys, values = _load_tile(
            table, kv, head_at, kind_stride, block_stride, at, high, DIM, DIM_P, PAGE, BLOCK
        )  # fmt: skip
        most, mass, sums = _take_in(
            queries, keys, values, most, mass, sums, at, low, high, scale, soft_cap, BLOCK, SOFT_CAP, PRECISION
        )
    result = sums / tl.where(mass > 0, mass, 1.0)[:, None]
    target = out + token * (NUM_KV * GROUP * DIM) + heads_at
    num_parts = end_item - begin_item
    if num_parts == 1:
        tl.store(target, result.to(out.dtype.element_ty), mask=used)
        return
    lse = tl.where(mass > 0, most + tl.log2(tl.where(mass > 0, mass, 1.0)), NEGATIVE)
    part = tl.load(parts + line)
    mine = (part + item - begin_item) * NUM_KV + head
    inside = group[:, None] * DIM + dim[None, :]
    tl.store(partial + mine * (GROUP * DIM) + inside, result, mask=used)
    tl.store(partial_lse + mine * GROUP + group, lse, mask=group < GROUP)
    tl.debug_barrier()  # all stores of this program come before its arrival
    if tl.atomic_add(arrivals + part * NUM_KV + head, 1, sem="acq_rel") == num_parts - 1:
        tl.store(arrivals + part * NUM_KV + head, 0)
        most = tl.full((GROUP_P,), NEGATIVE, tl.float32)
        mass = tl.zeros((GROUP_P,), tl.float32)
        sums = tl.zeros((GROUP_P, DIM_P), tl.float32)
        for other in range(num_parts):
            theirs = (part + other) * NUM_KV + head
            lse = tl.load(
                partial_lse + theirs * GROUP + group, mask=group < GROUP, other=NEGATIVE, cache_modifier=".cg"
            )
            piece = tl.load(partial + theirs * (GROUP * DIM) + inside, mask=used, other=0.0, cache_modifier=".cg")
            new_most = tl.maximum(most, lse)
            shrink, weight = tl.exp2(most - new_most), tl.exp2(lse - new_most)
            sums = sums * shrink[:, None] + piece * weight[:, None]
            mass = mass * shrink + weight
            most = new_most
        tl.store(target, (sums / mass[:, None]).to(out.dtype.element_ty), mask=used)


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Partial results of requests that are split, and who has arrived. One kernel at a time may use it.

    Attributes:
        partial: float32, 2 * extra * num_heads * head_dim.
        lse: float32, 2 * extra * num_heads.
        arrivals: int32, 2 * extra * num_kv_heads, at each request's first part; zero between launches.
    """

    partial: torch.Tensor
    lse: torch.Tensor
    arrivals: torch.Tensor

    @staticmethod
    def make(extra: int, num_heads: int, head_dim: int, device: torch.device) -> DecodeScratch:
        """For plans with this `extra`."""
        parts = 2 * extra * num_heads
        return DecodeScratch(
            torch.empty(parts * head_dim, dtype=torch.float32, device=device),
            torch.empty(parts, dtype=torch.float32, device=device),
            torch.zeros(parts, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """Compile-time choices: tokens per tile, warps, pipeline stages; whether to begin before the wait."""

    block: int
    warps: int
    stages: int
    early: bool = False


def decode_attention(
    q: torch.Tensor,  # [tokens, num_heads, head_dim], lines may be apart
    kv: torch.Tensor,  # [blocks, 2, num_kv_heads, block_size, head_dim]
    out: torch.Tensor,  # [tokens, num_heads * head_dim]
    tables: torch.Tensor,  # [rows, blocks]
    rows: torch.Tensor,  # [requests]
    query_starts: torch.Tensor,  # [requests + 1]
    kv_lens: torch.Tensor,  # [requests]
    plan: DecodePlan,
    scratch: DecodeScratch,
    tiles: DecodeTiles,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    beside: bool = False,
) -> None:
    """Attend for the one new token of each planned request, into its line of `out`.

    Args:
        beside: the kernel launched just before was the `prefill_attention` of the same step and layer; run together
            with it where the GPU can.
    """
    num_heads, dim = q.shape[1:]
    num_kv, page = kv.shape[2], kv.shape[3]
    group = num_heads // num_kv
    launch = dependent_launch(q)
    beside = beside and launch["PDL"]
    _attend[(num_kv, len(plan.items) + beside)](
        q, kv, out, tables, rows, query_starts, kv_lens, plan.requests, plan.first, plan.parts, plan.items, plan.split,
        scratch.partial, scratch.lse, scratch.arrivals,
        scale if soft_cap else scale * 1.4426950408889634, soft_cap or 1.0, window or 0,
        q.stride(0), tables.stride(0), kv.stride(0), kv.stride(1), kv.stride(2),
        NUM_KV=num_kv, GROUP=group, GROUP_P=max(16, next_power_of_2(group)),
        DIM=dim, DIM_P=max(16, next_power_of_2(dim)), PAGE=page, BLOCK=tiles.block, EARLY=tiles.early and not beside,
        WINDOW=window is not None, SOFT_CAP=soft_cap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        BESIDE=beside, num_warps=tiles.warps, num_stages=tiles.stages, **launch,
    )  # fmt: skip
