"""Mixture of experts in Triton: tokens sorted by expert, and two grouped products, without a wait for the host.

A pair is a token and one of its k experts. Pairs lie one expert after the other; a block is up to BLOCK pairs of one
expert, and there are at most pairs / BLOCK + experts of them, so the number of programs needs no lengths:

    pairs by expert  | expert 0: 5 pairs | expert 1: none | expert 2: 17 pairs | ...
    blocks of 16     | 0                 |                | 2    | 2           | ...  num, num, .. beyond the last

Within an expert pairs come in any order: a line of a product depends on nothing but itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import _activate
from quire.worker.kernels.launch import dependent_launch, next_power_of_2

CHUNK = 128
"""Pairs that one program sorts."""


@triton.jit
def _rank(chosen, counts, ranks, num_pairs, CHUNK: tl.constexpr, PDL: tl.constexpr):
    """Count each expert's pairs; a pair's rank is how many came before it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = pair < num_pairs
    expert = tl.load(chosen + pair, mask=inside, other=0)
    tl.store(ranks + pair, tl.atomic_add(counts + expert, 1, mask=inside), mask=inside)


@triton.jit
def _sort(
    chosen, counts, ranks, order, blocks, starts, num_pairs, num_blocks, num,
    NUM_P: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Places of pairs, and of every block its expert and its first place."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    each = tl.arange(0, NUM_P)
    count = tl.load(counts + each, mask=each < num, other=0)
    start = tl.cumsum(count) - count
    used = (count + BLOCK - 1) // BLOCK
    first_block = tl.cumsum(used) - used
    pair = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = pair < num_pairs
    expert = tl.load(chosen + pair, mask=inside, other=0).to(tl.int32)
    rank = tl.load(ranks + pair, mask=inside, other=0)
    mine = expert[:, None] == each[None, :]
    tl.store(order + tl.sum(tl.where(mine, start[None, :], 0), 1) + rank, pair, mask=inside)
    block = pair
    of = (first_block[None, :] <= block[:, None]) & (block[:, None] < (first_block + used)[None, :])
    found = tl.sum(of.to(tl.int32), 1) > 0
    whose = tl.where(found, tl.sum(tl.where(of, each[None, :], 0), 1), num)
    place = tl.sum(tl.where(of, start[None, :] + (block[:, None] - first_block[None, :]) * BLOCK, 0), 1)
    tl.store(blocks + block, whose, mask=block < num_blocks)
    tl.store(starts + block, place, mask=block < num_blocks)


@triton.jit
def _pairs(block, blocks, starts, order, counts, num, NUM_P: tl.constexpr, BLOCK: tl.constexpr):
    """(expert, places, pairs, which of them there are) of a block."""
    expert = tl.load(blocks + block)
    place = tl.load(starts + block) + tl.arange(0, BLOCK)
    each = tl.arange(0, NUM_P)
    end = tl.sum(tl.load(counts + each, mask=each <= tl.minimum(expert, num - 1), other=0), 0)
    inside = place < tl.where(expert < num, end, 0)
    return expert, place, tl.load(order + place, mask=inside, other=0), inside


@triton.jit(do_not_specialize=["num"])
def _gate_up(
    x, weight, out, blocks, starts, order, counts, num, k, size, width,
    NUM_P: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [places, width] = act(gate) * up of the pairs' tokens."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    expert, place, pair, inside = _pairs(tl.program_id(1), blocks, starts, order, counts, num, NUM_P, BLOCK)
    if expert >= num:
        return
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    line = (pair // k).to(tl.int64) * size
    matrix = weight + expert.to(tl.int64) * (2 * width * size)
    gate = tl.zeros((BLOCK, COLUMNS), tl.float32)
    up = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for start in range(0, size, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        lines = tl.load(x + line[:, None] + depth[None, :], mask=inside[:, None] & (depth < size)[None, :], other=0.0)
        there = (depth < size)[:, None] & (column < width)[None, :]
        at = column.to(tl.int64)[None, :] * size + depth[:, None]
        gate = tl.dot(lines, tl.load(matrix + at, mask=there, other=0.0), gate, input_precision=PRECISION)
        at += width.to(tl.int64) * size
        up = tl.dot(lines, tl.load(matrix + at, mask=there, other=0.0), up, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    value = _activate(gate.to(dtype).to(tl.float32), KIND).to(dtype) * up.to(dtype)
    to = out + place.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(to, value, mask=inside[:, None] & (column < width)[None, :])


@triton.jit(do_not_specialize=["num"])
def _down(
    x, weight, shares, out, blocks, starts, order, counts, num, size, width,
    NUM_P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [pairs, size] = share * weight @ x [places, width]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    expert, place, pair, inside = _pairs(tl.program_id(1), blocks, starts, order, counts, num, NUM_P, BLOCK)
    if expert >= num:
        return
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    line = place.to(tl.int64) * width
    matrix = weight + expert.to(tl.int64) * (size * width)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        lines = tl.load(x + line[:, None] + depth[None, :], mask=inside[:, None] & (depth < width)[None, :], other=0.0)
        there = (depth < width)[:, None] & (column < size)[None, :]
        at = column.to(tl.int64)[None, :] * width + depth[:, None]
        total = tl.dot(lines, tl.load(matrix + at, mask=there, other=0.0), total, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    share = tl.load(shares + pair, mask=inside, other=0.0)
    to = out + pair.to(tl.int64)[:, None] * size + column[None, :]
    tl.store(to, total.to(dtype) * share[:, None], mask=inside[:, None] & (column < size)[None, :])


def experts(
    x: torch.Tensor,  # [tokens, size], contiguous
    gate_up: torch.Tensor,  # [num, 2 * width, size]
    down: torch.Tensor,  # [num, size, width]
    chosen: torch.Tensor,  # [tokens, k]
    weights: torch.Tensor,  # [tokens, k]
    kind: str,
) -> torch.Tensor:  # [tokens, size]
    """Sum over k of weights[:, k] * down[e] @ gated(gate_up[e] @ x), e = chosen[:, k]."""
    (tokens, k), (num, size, width) = chosen.shape, down.shape
    if not tokens:
        return torch.empty_like(x)
    pairs = tokens * k
    block = 16 if pairs <= 16 * num else 64
    num_blocks = min(pairs, triton.cdiv(pairs, block) + num)
    device, num_p = x.device, next_power_of_2(num)
    counts = torch.zeros(num, dtype=torch.int32, device=device)
    ranks, order, blocks, starts = torch.empty(2 * pairs + 2 * num_blocks, dtype=torch.int32, device=device).split(
        [pairs, pairs, num_blocks, num_blocks]
    )
    launch = dependent_launch(x)
    chosen = chosen.contiguous()
    _rank[(triton.cdiv(pairs, CHUNK),)](chosen, counts, ranks, pairs, CHUNK=CHUNK, **launch)
    _sort[(triton.cdiv(pairs, CHUNK),)](
        chosen, counts, ranks, order, blocks, starts, pairs, num_blocks, num,
        NUM_P=num_p, BLOCK=block, CHUNK=CHUNK, **launch,
    )  # fmt: skip
    tiles = {"BLOCK": block, "COLUMNS": 64, "DEPTH": 64, "NUM_P": num_p}
    tiles["PRECISION"] = "ieee" if x.dtype == torch.float32 else "tf32"
    where = (blocks, starts, order, counts, num)
    inner = torch.empty(pairs, width, dtype=x.dtype, device=device)
    _gate_up[(triton.cdiv(width, 64), num_blocks)](
        x, gate_up, inner, *where, k, size, width, KIND=kind, num_warps=4, num_stages=3, **tiles, **launch
    )
    out = torch.empty(pairs, size, dtype=x.dtype, device=device)
    _down[(triton.cdiv(size, 64), num_blocks)](
        inner, down, weights.contiguous(), out, *where, size, width, num_warps=4, num_stages=3, **tiles, **launch
    )
    return out.view(tokens, k, size).sum(1)
