"""Products of one line with a weight matrix, in Triton: bound by reading the weights, so nothing else may wait.

A program takes ROWS lines of the weight and all of x. Its first weights are on their way before it waits for the
kernel that writes x (programmatic dependent launch), so the memory is busy while that one runs out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import _activate
from quire.worker.kernels.launch import dependent_launch


@triton.jit
def _stretch(base, column, K: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr):
    """A stretch of columns of some lines; the mask is there only if the columns do not come out even."""
    if K % BLOCK == 0:
        if WEIGHT:
            value = tl.load(base + column, eviction_policy="evict_first")
        else:
            value = tl.load(base + column)
    elif WEIGHT:
        value = tl.load(base + column, mask=column < K, other=0.0, eviction_policy="evict_first")
    else:
        value = tl.load(base + column, mask=column < K, other=0.0)
    return value


@triton.jit
def _gemv(
    x, weight, bias, out, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N] = x [K] @ weight [N, K].T; N is a multiple of ROWS."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    base = weight + line[:, None].to(tl.int64) * K
    first = _stretch(base, column, K, BLOCK, True)
    if PDL:
        tl.extra.cuda.gdc_wait()
    sums = first.to(tl.float32) * _stretch(x, column, K, BLOCK, False).to(tl.float32)  # [ROWS, BLOCK]
    for at in tl.static_range(BLOCK, K, BLOCK):
        w = _stretch(base, at + column, K, BLOCK, True)
        sums += w.to(tl.float32) * _stretch(x, at + column, K, BLOCK, False).to(tl.float32)
    result = tl.sum(sums, 1)
    if BIAS:
        result += tl.load(bias + line).to(tl.float32)
    tl.store(out + line, result.to(out.dtype.element_ty))


@triton.jit
def _gated_gemv(
    x, weight, out, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N] = act(x @ gate.T) * (x @ up.T), weight [gate | up] of N lines each; N is a multiple of ROWS."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    gate_base = weight + line[:, None].to(tl.int64) * K
    up_base = weight + (line[:, None] + N).to(tl.int64) * K
    first_gate = _stretch(gate_base, column, K, BLOCK, True)
    first_up = _stretch(up_base, column, K, BLOCK, True)
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = _stretch(x, column, K, BLOCK, False).to(tl.float32)
    gate, up = first_gate.to(tl.float32) * v, first_up.to(tl.float32) * v
    for at in tl.static_range(BLOCK, K, BLOCK):
        v = _stretch(x, at + column, K, BLOCK, False).to(tl.float32)
        gate += _stretch(gate_base, at + column, K, BLOCK, True).to(tl.float32) * v
        up += _stretch(up_base, at + column, K, BLOCK, True).to(tl.float32) * v
    dtype = out.dtype.element_ty
    gate_sum, up_sum = tl.sum(gate, 1).to(dtype), tl.sum(up, 1).to(dtype)
    tl.store(out + line, _activate(gate_sum.to(tl.float32), KIND).to(dtype) * up_sum)


@dataclass(frozen=True, slots=True)
class GemvTiles:
    """Compile-time choices: lines of the weight per program, columns at once, warps."""

    rows: int
    block: int
    warps: int


def gemv(
    x: torch.Tensor,  # [1, K]
    weight: torch.Tensor,  # [N, K]
    bias: torch.Tensor | None,
    tiles: GemvTiles,
) -> torch.Tensor:  # [1, N]
    """x @ weight.T + bias; N must be a multiple of tiles.rows."""
    lines, size = x.shape
    width = weight.shape[0]
    out = torch.empty(lines, width, dtype=x.dtype, device=x.device)
    _gemv[(width // tiles.rows,)](
        x, weight, weight if bias is None else bias, out, width, K=size, ROWS=tiles.rows, BLOCK=tiles.block,
        BIAS=bias is not None, num_warps=tiles.warps, **dependent_launch(x),
    )  # fmt: skip
    return out


def gated_gemv(
    x: torch.Tensor,  # [1, K]
    weight: torch.Tensor,  # [2 * N, K], gate above up
    kind: str,
    tiles: GemvTiles,
) -> torch.Tensor:  # [1, N]
    """act(x @ gate.T) * (x @ up.T); N must be a multiple of tiles.rows."""
    lines, size = x.shape
    width = weight.shape[0] // 2
    out = torch.empty(lines, width, dtype=x.dtype, device=x.device)
    _gated_gemv[(width // tiles.rows,)](
        x, weight, out, width, K=size, ROWS=tiles.rows, BLOCK=tiles.block, KIND=kind,
        num_warps=tiles.warps, **dependent_launch(x),
    )  # fmt: skip
    return out


CANDIDATES = (GemvTiles(2, 2048, 8), GemvTiles(1, 2048, 4), GemvTiles(4, 1024, 4), GemvTiles(2, 1024, 4))
"""What is worth trying; each is the best somewhere on an H200 (benchmarks/NOTES.md)."""


def default_tiles(size: int, width: int) -> GemvTiles | None:
    """Tiles for x [1, size] and `width` lines of results before anything was measured; None is cuBLAS."""
    if size < 512:
        return None
    if size <= 1024 or size % 2048:
        tiles = CANDIDATES[2]
    else:
        tiles = CANDIDATES[0] if size <= 4096 else CANDIDATES[1]
    return tiles if width % tiles.rows == 0 else None
