"""Products of few rows with weights of 4 or 8 bits in groups, in Triton: bound by reading the weights.

Weights are laid out once, block by block of inputs, so that what a program reads lies together:

    4 bits   q [inputs / BLOCK, outs, BLOCK / 2]   byte h: input h in the lower half, BLOCK / 2 + h in the upper one
    8 bits   q [inputs / BLOCK, outs, BLOCK]
    scales, zeros [groups, outs];  BLOCK divides the group

A program takes BLOCK_N outputs and a share of the inputs (split-K), and all rows of x. Whole numbers are exact in 16
bits, so the tensor cores multiply by them as they are; scale and zero are applied to a block's sum in float32:

    sum over a block of x * (q - zero) * scale  =  scale * (x @ q  -  zero * sum of x)

More rows than MOST_ROWS go through `dense`: the matrix in 16 bits for as long as cuBLAS multiplies by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.worker.kernels.launch import dependent_launch
from quire.worker.kernels.weights import GroupWeights, unpack_halves

MOST_ROWS = 64
BLOCKS = (128, 64, 32)
PROGRAMS = 264
"""What is wanted at least: two for every multiprocessor of an H200."""


@dataclass(frozen=True, slots=True)
class TiledGroups:
    """GroupWeights as the kernels read them."""

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None
    bits: int
    group: int
    block: int
    outs: int
    inputs: int

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it holds."""
        return tuple(t for t in (self.q, self.scales, self.zeros, self.order) if t is not None)

    def dense(self, dtype: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
        """Outputs first .. end of the matrix; see weights.Weights."""
        return dense(self, dtype)[first:end]


@dataclass(frozen=True, slots=True)
class GroupTiles:
    """Compile-time choices: outputs of a program, parts of the inputs, warps, stages."""

    block_n: int
    split: int
    warps: int
    stages: int


CANDIDATES = (
    GroupTiles(64, 1, 4, 4), GroupTiles(64, 2, 4, 4), GroupTiles(64, 4, 4, 4), GroupTiles(64, 8, 4, 4),
    GroupTiles(128, 1, 4, 4), GroupTiles(128, 2, 4, 4), GroupTiles(128, 4, 8, 3), GroupTiles(32, 1, 4, 5),
    GroupTiles(32, 4, 4, 5),
)  # fmt: skip
"""What benchmarks/quantised_kernels.py tries."""


def block_of(weights: GroupWeights) -> int:
    """Inputs of a block; 0: these groups have none."""
    if weights.inputs % weights.group:
        return 0
    return next((block for block in BLOCKS if weights.group % block == 0), 0)


def tile(weights: GroupWeights) -> TiledGroups:
    """Lay weights out that `block_of` has a block for."""
    block, outs = block_of(weights), weights.outs
    if weights.bits == 4:
        values = unpack_halves(weights.q, weights.inputs).view(outs, -1, 2, block // 2)
        q = (values[:, :, 0] | values[:, :, 1] << 4).transpose(0, 1).contiguous()
    else:
        q = weights.q.view(outs, -1, block).transpose(0, 1).contiguous()
    zeros = None if weights.zeros is None else weights.zeros.t().contiguous()
    return TiledGroups(
        q,
        weights.scales.t().contiguous(),
        zeros,
        weights.order,
        weights.bits,
        weights.group,
        block,
        outs,
        weights.inputs,
    )


def default_tiles(rows: int, outs: int, blocks: int) -> GroupTiles:
    """Enough programs to fill a large GPU, each with four blocks or more to read."""
    block_n = 128 if outs >= 128 * PROGRAMS else 64
    split = 1
    while split < 16 and triton.cdiv(outs, block_n) * split < PROGRAMS and blocks >= 8 * split:
        split *= 2
    return GroupTiles(block_n, split, 4, 4 if rows <= 32 else 3)


@triton.jit
def _numbers(q, like, BITS: tl.constexpr):
    """Whole numbers below 2 ** BITS in x's format, exactly: written into the digits of a float, which is no conversion,
    where there is room for them."""
    if like.dtype.element_ty == tl.float16:
        return (q.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    if like.dtype.element_ty == tl.bfloat16 and BITS == 4:
        return (q.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 128.0
    return q.to(tl.float32).to(like.dtype.element_ty)


@triton.jit
def _group_product(
    x, q, scales, zeros, bias, out, M, N, K, blocks, per_group,
    BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    ZEROS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w [N, K].T, or with SPLIT > 1 sums of the parts, float32 [SPLIT, M, N]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    HALF: tl.constexpr = BLOCK // 2 if BITS == 4 else BLOCK
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    h = tl.arange(0, HALF)
    there = n < N
    each = tl.cdiv(blocks, SPLIT)
    first = tl.program_id(1) * each
    line = q + n.to(tl.int64)[:, None] * HALF + h[None, :]  # [BLOCK_N, HALF]
    rows = x + m.to(tl.int64)[None, :] * K + h[:, None]  # [HALF, BLOCK_M], x from top to bottom
    wide_n = tl.cast(N, tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for block in range(first, tl.minimum(first + each, blocks)):
        packed = tl.load(line + block * wide_n * HALF, mask=there[:, None], other=0, eviction_policy="evict_first")
        low = tl.load(rows + block * BLOCK, mask=(m < M)[None, :], other=0.0)
        at = block // per_group * wide_n + n
        scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        if BITS == 4:
            high = tl.load(rows + block * BLOCK + HALF, mask=(m < M)[None, :], other=0.0)
            part = tl.dot(_numbers(packed & 15, x, 4), low, input_precision=PRECISION)
            part = tl.dot(_numbers(packed >> 4, x, 4), high, part, input_precision=PRECISION)
            sums = tl.sum(low.to(tl.float32) + high.to(tl.float32), 0)
        else:
            part = tl.dot(_numbers(packed, x, 8), low, input_precision=PRECISION)
            sums = tl.sum(low.to(tl.float32), 0)
        if ZEROS:
            zero = tl.load(zeros + at, mask=there, other=0.0).to(tl.float32)
            part -= zero[:, None] * sums[None, :]
        else:
            part -= (1 << (BITS - 1)) * sums[None, :]
        total += scale[:, None] * part
    if BIAS and SPLIT == 1:
        total += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[:, None]
    to = out + (tl.program_id(1) * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(to, total.to(out.dtype.element_ty), mask=there[:, None] & (m < M)[None, :])


@triton.jit
def _add_parts(
    parts, bias, out, M, N, SPLIT: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """out [M, N] = sum of parts [SPLIT, M, N], in their order."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * N + n
    total = tl.zeros((COLUMNS,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * tl.cast(M, tl.int64) * N + at, mask=n < N, other=0.0)
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _dense(
    q, scales, zeros, out, N, K, per_group,
    BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, ZEROS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N, K] = (q - zero) * scale."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    HALF: tl.constexpr = BLOCK // 2 if BITS == 4 else BLOCK
    block = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, HALF)
    there = n < N
    packed = tl.load(q + (block * N + n)[:, None] * HALF + h[None, :], mask=there[:, None], other=0)
    at = block // per_group * N + n
    scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)[:, None]
    if ZEROS:
        zero = tl.load(zeros + at, mask=there, other=0.0).to(tl.float32)[:, None]
    else:
        zero = tl.zeros((BLOCK_N, 1), tl.float32) + (1 << (BITS - 1))
    dtype = out.dtype.element_ty
    to = out + n.to(tl.int64)[:, None] * K + block * BLOCK + h[None, :]
    if BITS == 4:
        tl.store(to, (((packed & 15).to(tl.float32) - zero) * scale).to(dtype), mask=there[:, None])
        tl.store(to + HALF, (((packed >> 4).to(tl.float32) - zero) * scale).to(dtype), mask=there[:, None])
    else:
        tl.store(to, ((packed.to(tl.float32) - zero) * scale).to(dtype), mask=there[:, None])


def dense(weights: TiledGroups, dtype: torch.dtype, *, ordered: bool = True) -> torch.Tensor:
    """The matrix [outs, inputs]; `ordered=False` leaves columns as they are stored."""
    out = torch.empty(weights.outs, weights.inputs, dtype=dtype, device=weights.q.device)
    grid = (triton.cdiv(weights.outs, 32), weights.inputs // weights.block)
    zeros = weights.scales if weights.zeros is None else weights.zeros
    _dense[grid](
        weights.q, weights.scales, zeros, out, weights.outs, weights.inputs, weights.group // weights.block,
        BITS=weights.bits, BLOCK=weights.block, BLOCK_N=32, ZEROS=weights.zeros is not None, num_warps=4,
        **dependent_launch(out),
    )  # fmt: skip
    if weights.order is None or not ordered:
        return out
    return torch.empty_like(out).index_copy_(1, weights.order, out)


def product(
    x: torch.Tensor,  # [rows, inputs]
    weights: TiledGroups,
    bias: torch.Tensor | None,
    tiles: GroupTiles | None = None,
) -> torch.Tensor:  # [rows, outs]
    """x @ w.T + bias, of any number of rows."""
    if weights.order is not None:
        x = x[:, weights.order]
    x = x.contiguous()
    rows, (outs, inputs) = len(x), (weights.outs, weights.inputs)
    if rows > MOST_ROWS:
        return torch.nn.functional.linear(x, dense(weights, x.dtype, ordered=False), bias)
    out = torch.empty(rows, outs, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    blocks = inputs // weights.block
    tiles = tiles or default_tiles(rows, outs, blocks)
    launch = dependent_launch(x)
    parts = out if tiles.split == 1 else torch.empty(tiles.split, rows, outs, dtype=torch.float32, device=x.device)
    _group_product[(triton.cdiv(outs, tiles.block_n), tiles.split)](
        x, weights.q, weights.scales, weights.scales if weights.zeros is None else weights.zeros,
        x if bias is None else bias, parts, rows, outs, inputs, blocks, weights.group // weights.block,
        BITS=weights.bits, BLOCK=weights.block, BLOCK_M=rows_block(rows), BLOCK_N=tiles.block_n, SPLIT=tiles.split,
        ZEROS=weights.zeros is not None, BIAS=bias is not None, PRECISION=precision(x), num_warps=tiles.warps,
        num_stages=tiles.stages, **launch,
    )  # fmt: skip
    return out if tiles.split == 1 else add_parts(parts, bias, out)


def add_parts(parts: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Into out [rows, outs]: the sum of float32 [split, rows, outs], and the bias."""
    (split, rows, outs), columns = parts.shape, 512
    _add_parts[(rows, triton.cdiv(outs, columns))](
        parts, out if bias is None else bias, out, rows, outs, SPLIT=split, COLUMNS=columns, BIAS=bias is not None,
        num_warps=4, **dependent_launch(out),
    )  # fmt: skip
    return out


def rows_block(rows: int) -> int:
    """Rows of a tile: a power of two that tensor cores take."""
    return max(16, 1 << (rows - 1).bit_length())


def precision(x: torch.Tensor) -> str:
    """How float32 is multiplied."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
