"""Mixture of experts in Triton: routing, tokens sorted by expert, two grouped products; no wait for the host.

A pair is a token and one of its k experts. Pairs lie one expert after the other; a block is up to BLOCK pairs of one
expert, and there are at most pairs / BLOCK + experts of them, so the number of programs needs no lengths:

    pairs by expert  | expert 0: 5 pairs | expert 1: none | expert 2: 17 pairs | ...
    blocks of 16     | 0                 |                | 2    | 2           | ...  num, num, .. beyond the last

Within an expert pairs come in any order: a line of a product depends on nothing but itself. Programs of all blocks
that read the same columns of a weight follow each other, so that it comes from memory once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import _activate
from quire.worker.kernels.launch import dependent_launch, next_power_of_2

CHUNK = 32
"""Pairs that one program sorts."""


class Tiles(NamedTuple):
    """What one program of a grouped product takes: lines by columns, and how deep it reads at once."""

    block: int
    columns: int
    depth: int
    warps: int
    stages: int


FEW = Tiles(16, 64, 128, 4, 5)
"""Up to 16 pairs an expert: bound by the reading of weights,"""
SOME = Tiles(64, 64, 64, 4, 4)
"""up to 64,"""
MANY = Tiles(128, 128, 64, 8, 3)
"""and more. The first two read within 7 % of the memory's rate, the last multiplies at 500 TFLOP/s (H200)."""


@triton.jit
def _route(
    logits, chosen, weights, num, stride,
    NUM_P: tl.constexpr, K: tl.constexpr, K_P: tl.constexpr, RESCALE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The K largest of a softmax, the largest first; of equal ones the first."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, NUM_P)
    x = tl.load(logits + token * stride + each, mask=each < num, other=float("-inf")).to(tl.float32)
    share = tl.exp(x - tl.max(x, 0))
    total = tl.sum(share, 0)
    left = tl.where(each < num, share, -1.0)
    place = tl.arange(0, K_P)
    found = tl.zeros((K_P,), tl.int32)
    values = tl.zeros((K_P,), tl.float32)
    for index in tl.static_range(K):
        value = tl.max(left, 0)
        best = tl.min(tl.where(left == value, each, NUM_P - 1), 0)
        left = tl.where(each == best, -1.0, left)
        found = tl.where(place == index, best, found)
        values = tl.where(place == index, value, values)
    if RESCALE:
        total = tl.sum(values, 0)
    tl.store(chosen + token * K + place, found, mask=place < K)
    tl.store(weights + token * K + place, (values / total).to(weights.dtype.element_ty), mask=place < K)


def route(logits: torch.Tensor, k: int, rescale: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [tokens, num] to chosen [tokens, k] int32 and their shares [tokens, k], summing to one if `rescale`."""
    tokens, num = logits.shape
    chosen = torch.empty(tokens, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, k, dtype=dtype, device=logits.device)
    if tokens:
        _route[(tokens,)](
            logits, chosen, weights, num, logits.stride(0), NUM_P=next_power_of_2(num), K=k, K_P=next_power_of_2(k),
            RESCALE=rescale, num_warps=1 if num <= 64 else 2, **dependent_launch(logits),
        )  # fmt: skip
    return chosen, weights


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
    chosen, counts, ranks, order, blocks, num_pairs, num_blocks, num,
    NUM_P: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Places of pairs, and of every block its expert, its first place and where the expert's places end."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    each = tl.arange(0, NUM_P)
    count = tl.load(counts + each, mask=each < num, other=0)
    end = tl.cumsum(count)
    start = end - count
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
    place = tl.sum(tl.where(of, start[None, :] + (block[:, None] - first_block[None, :]) * BLOCK, 0), 1)
    there = block < num_blocks
    tl.store(blocks + block, tl.where(found, tl.sum(tl.where(of, each[None, :], 0), 1), num), mask=there)
    tl.store(blocks + num_blocks + block, place, mask=there)
    tl.store(blocks + 2 * num_blocks + block, tl.sum(tl.where(of, end[None, :], 0), 1), mask=there)


@triton.jit(do_not_specialize=["num_blocks", "num"])
def _gate_up(
    x, weight, out, blocks, order, num_blocks, num, k, size, width,
    KIND: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [places, width] = act(gate) * up of the pairs' tokens."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block = tl.program_id(0)
    expert = tl.load(blocks + block)
    if expert >= num:
        return
    place = tl.load(blocks + num_blocks + block) + tl.arange(0, BLOCK)
    inside = place < tl.load(blocks + 2 * num_blocks + block)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    line = (tl.load(order + place, mask=inside, other=0) // k).to(tl.int64) * size
    lines_at = x + line[:, None] + depth[None, :]
    gate_at = weight + expert.to(tl.int64) * (2 * width * size) + column[None, :] * size + depth[:, None]
    up_at = gate_at + width * size
    there = (column < width)[None, :]
    gate = tl.zeros((BLOCK, COLUMNS), tl.float32)
    up = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for start in range(0, size, DEPTH):
        if EVEN:
            lines = tl.load(lines_at + start, mask=inside[:, None], other=0.0)
            gates, ups = tl.load(gate_at + start), tl.load(up_at + start)
        else:
            deep = start + depth < size
            lines = tl.load(lines_at + start, mask=inside[:, None] & deep[None, :], other=0.0)
            gates = tl.load(gate_at + start, mask=there & deep[:, None], other=0.0)
            ups = tl.load(up_at + start, mask=there & deep[:, None], other=0.0)
        gate = tl.dot(lines, gates, gate, input_precision=PRECISION)
        up = tl.dot(lines, ups, up, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    value = _activate(gate.to(dtype).to(tl.float32), KIND).to(dtype) * up.to(dtype)
    to = out + place.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(to, value, mask=inside[:, None] & there)


@triton.jit(do_not_specialize=["num_blocks", "num"])
def _down(
    x, weight, shares, out, blocks, order, num_blocks, num, size, width,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [pairs, size] = share * weight @ x [places, width]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block = tl.program_id(0)
    expert = tl.load(blocks + block)
    if expert >= num:
        return
    place = tl.load(blocks + num_blocks + block) + tl.arange(0, BLOCK)
    inside = place < tl.load(blocks + 2 * num_blocks + block)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    lines_at = x + place.to(tl.int64)[:, None] * width + depth[None, :]
    weight_at = weight + expert.to(tl.int64) * (size * width) + column[None, :] * width + depth[:, None]
    there = (column < size)[None, :]
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        if EVEN:
            lines = tl.load(lines_at + start, mask=inside[:, None], other=0.0)
            weights = tl.load(weight_at + start)
        else:
            deep = start + depth < width
            lines = tl.load(lines_at + start, mask=inside[:, None] & deep[None, :], other=0.0)
            weights = tl.load(weight_at + start, mask=there & deep[:, None], other=0.0)
        total = tl.dot(lines, weights, total, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    pair = tl.load(order + place, mask=inside, other=0)
    share = tl.load(shares + pair, mask=inside, other=0.0)
    to = out + pair.to(tl.int64)[:, None] * size + column[None, :]
    tl.store(to, total.to(dtype) * share[:, None], mask=inside[:, None] & there)


@triton.jit
def _combine(parts, out, size, K: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """out [tokens, size]: the sum over a token's K pairs, in float32."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < size
    total = tl.zeros((COLUMNS,), tl.float32)
    for index in tl.static_range(K):
        total += tl.load(parts + (token * K + index) * size + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * size + column, total.to(out.dtype.element_ty), mask=inside)


def tiles_for(pairs: int, num: int, element_size: int) -> Tiles:
    """For so many pairs over so many experts."""
    tiles = FEW if pairs <= 16 * num else SOME if pairs <= 64 * num else MANY
    return tiles if element_size == 2 else tiles._replace(depth=tiles.depth // 2)


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
    assert 2 * width * size < 2**31, "an expert's weights are addressed by 32 bits"
    out = torch.empty_like(x)
    if not tokens:
        return out
    pairs, device = tokens * k, x.device
    tiles = tiles_for(pairs, num, x.element_size())
    num_blocks = min(pairs, triton.cdiv(pairs, tiles.block) + num)
    counts = torch.zeros(num, dtype=torch.int32, device=device)
    ranks, order, blocks = torch.empty(2 * pairs + 3 * num_blocks, dtype=torch.int32, device=device).split(
        [pairs, pairs, 3 * num_blocks]
    )
    launch = dependent_launch(x)
    chosen = chosen.contiguous()
    sorting = {"CHUNK": CHUNK, "num_warps": 2, **launch}
    _rank[(triton.cdiv(pairs, CHUNK),)](chosen, counts, ranks, pairs, **sorting)
    _sort[(triton.cdiv(pairs, CHUNK),)](
        chosen, counts, ranks, order, blocks, pairs, num_blocks, num,
        NUM_P=next_power_of_2(num), BLOCK=tiles.block, **sorting,
    )  # fmt: skip
    where = (blocks, order, num_blocks, num)
    inner = torch.empty(pairs, width, dtype=x.dtype, device=device)
    _gate_up[(num_blocks, triton.cdiv(width, tiles.columns))](
        x, gate_up, inner, *where, k, size, width, KIND=kind, **_how(tiles, x, width, size), **launch
    )
    parts = torch.empty(pairs, size, dtype=x.dtype, device=device)
    _down[(num_blocks, triton.cdiv(size, tiles.columns))](
        inner, down, weights.contiguous(), parts, *where, size, width, **_how(tiles, x, size, width), **launch
    )
    _combine[(tokens, triton.cdiv(size, 1024))](parts, out, size, K=k, COLUMNS=1024, **launch)
    return out


def _how(tiles: Tiles, x: torch.Tensor, columns: int, depth: int) -> dict[str, object]:
    return {
        "BLOCK": tiles.block,
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "EVEN": columns % tiles.columns == 0 and depth % tiles.depth == 0,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
