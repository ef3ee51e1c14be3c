"""Products of a few lines with a weight matrix, in Triton: the weights are read once, and begin to be before x is there.

A program takes BLOCK_N lines of the weight and a stretch of their columns; where the stretches of a line are several,
whoever comes last adds the partial sums in their order, so the result does not depend on who that is.

    weight [N, K]   program (n, part): lines n * BLOCK_N .., columns part * K / PARTS ..
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.worker.kernels.activation import _activate
from quire.worker.kernels.launch import dependent_launch


@triton.jit
def _prefetch(pointers):
    """Bring these lines of memory into the L2 cache; nothing is returned that counts."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["lines"])
def _skinny(
    x, weight, bias, out, partial, arrivals, lines, N,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
    AHEAD: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [lines, N] = x [lines, K] @ weight [N, K].T"""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    block, part = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    STRETCH: tl.constexpr = K // PARTS
    here = n < N
    base = weight + tl.where(here, n, 0).to(tl.int64) * K + part * STRETCH
    if PDL:
        if AHEAD > 0:
            line = tl.arange(0, AHEAD) * 64  # 128 bytes each
            _prefetch(base[:, None] + line[None, :])
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    rows = x + m[:, None] * K + part * STRETCH
    for at in range(0, STRETCH, BLOCK_K):
        v = tl.load(rows + at + k[None, :], mask=m[:, None] < lines, other=0.0)
        w = tl.load(base[None, :] + at + k[:, None], eviction_policy="evict_first")
        sums = tl.dot(v, w, sums)
    target = m[:, None] * N + n[None, :]
    inside = (m[:, None] < lines) & here[None, :]
    if PARTS > 1:
        place = (block * PARTS + part) * (BLOCK_M * BLOCK_N) + m[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(partial + place, sums)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + block, 1, sem="acq_rel") != PARTS - 1:
            return
        tl.store(arrivals + block, 0)
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for other in tl.static_range(PARTS):
            sums += tl.load(partial + place + (other - part) * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
    if BIAS:
        sums += tl.load(bias + n, mask=here, other=0.0).to(tl.float32)[None, :]
    tl.store(out + target, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["lines"])
def _gated_skinny(
    x, weight, out, lines, N,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [lines, N] = act(x @ gate.T) * (x @ up.T), weight [gate | up] of N lines each; N is a multiple of BLOCK_N."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    gate_base = weight + n.to(tl.int64) * K
    up_base = weight + (n + N).to(tl.int64) * K
    if PDL:
        if AHEAD > 0:
            line = tl.arange(0, AHEAD) * 64
            _prefetch(gate_base[:, None] + line[None, :])
            _prefetch(up_base[:, None] + line[None, :])
        tl.extra.cuda.gdc_wait()
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    rows = x + m[:, None] * K
    for at in range(0, K, BLOCK_K):
        v = tl.load(rows + at + k[None, :], mask=m[:, None] < lines, other=0.0)
        g = tl.load(gate_base[None, :] + at + k[:, None], eviction_policy="evict_first")
        u = tl.load(up_base[None, :] + at + k[:, None], eviction_policy="evict_first")
        gate = tl.dot(v, g, gate)
        up = tl.dot(v, u, up)
    dtype = out.dtype.element_ty
    result = _activate(gate.to(dtype).to(tl.float32), KIND).to(dtype) * up.to(dtype)
    tl.store(out + m[:, None] * N + n[None, :], result, mask=m[:, None] < lines)


@dataclass(frozen=True, slots=True)
class SkinnyTiles:
    """Compile-time choices.

    Attributes:
        lines: lines of x that fit, 16 or more.
        block_n, block_k: lines and columns of the weight at once.
        parts: stretches that the columns are cut into.
        warps, stages: of the program.
        ahead: columns / 64 that are fetched into the L2 cache before x is there.
    """

    lines: int
    block_n: int
    block_k: int
    parts: int
    warps: int
    stages: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class SkinnyScratch:
    """Partial sums and who has arrived; one kernel at a time may use it. `arrivals` is zero between launches."""

    partial: torch.Tensor
    arrivals: torch.Tensor

    @staticmethod
    def make(numbers: int, blocks: int, device: torch.device) -> SkinnyScratch:
        """Room for `numbers` partial sums and `blocks` blocks of lines."""
        return SkinnyScratch(
            torch.empty(numbers, dtype=torch.float32, device=device),
            torch.zeros(blocks, dtype=torch.int32, device=device),
        )


def skinny(
    x: torch.Tensor,  # [lines, K], lines <= tiles.lines
    weight: torch.Tensor,  # [N, K], K a multiple of tiles.parts * tiles.block_k
    bias: torch.Tensor | None,
    scratch: SkinnyScratch,
    tiles: SkinnyTiles,
) -> torch.Tensor:  # [lines, N]
    """x @ weight.T + bias."""
    lines, size = x.shape
    width = weight.shape[0]
    out = torch.empty(lines, width, dtype=x.dtype, device=x.device)
    _skinny[(triton.cdiv(width, tiles.block_n), tiles.parts)](
        x, weight, weight if bias is None else bias, out, scratch.partial, scratch.arrivals, lines, width, K=size,
        BLOCK_M=tiles.lines, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, PARTS=tiles.parts, AHEAD=tiles.ahead,
        BIAS=bias is not None, num_warps=tiles.warps, num_stages=tiles.stages, **dependent_launch(x),
    )  # fmt: skip
    return out


def gated_skinny(
    x: torch.Tensor,  # [lines, K], lines <= tiles.lines
    weight: torch.Tensor,  # [2 * N, K], gate above up; N a multiple of tiles.block_n, K of tiles.block_k
    kind: str,
    tiles: SkinnyTiles,
) -> torch.Tensor:  # [lines, N]
    """act(x @ gate.T) * (x @ up.T)."""
    lines, size = x.shape
    width = weight.shape[0] // 2
    out = torch.empty(lines, width, dtype=x.dtype, device=x.device)
    _gated_skinny[(width // tiles.block_n,)](
        x, weight, out, lines, width, K=size, BLOCK_M=tiles.lines, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        AHEAD=tiles.ahead, KIND=kind, num_warps=tiles.warps, num_stages=tiles.stages, **dependent_launch(x),
    )  # fmt: skip
    return out
