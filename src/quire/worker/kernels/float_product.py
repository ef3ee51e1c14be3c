"""Products of few rows with FP8 weights, in Triton: bound by reading the weights, one byte each.

Rows stay in 16 bits and weights are widened in registers, so few rows lose nothing to quantized inputs; tensor cores
are idle most of the time anyway. Scales lie per output, or per tile of outputs and inputs:

    x [M, K] @ (q [N, K] * scales [N / TILE_OUTS, K / TILE_INPUTS]).T

More rows than MOST_ROWS are quantized, a scale each, for the FP8 products of cuBLAS, where the GPU has them and weights
have a scale per output; elsewhere the matrix is made in 16 bits for as long as it is multiplied by.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from quire.worker.kernels.group_product import GroupTiles, add_parts, default_tiles, precision, rows_block
from quire.worker.kernels.launch import dependent_launch
from quire.worker.kernels.weights import FloatWeights

MOST_ROWS = 64
LARGEST = 448.0
BLOCKS = (128, 64, 32)


@triton.jit
def _widened(q, like, HARDWARE: tl.constexpr):
    """float8_e4m3fn, as bytes, in x's format. Without instructions for it: its digits lie where float16 has them, and
    its exponent is 8 less."""
    if HARDWARE:
        return q.to(tl.float8e4nv, bitcast=True).to(like.dtype.element_ty)
    wide = q.to(tl.int16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return (half.to(tl.float16, bitcast=True) * 256.0).to(like.dtype.element_ty)


@triton.jit
def _float_product(
    x, q, scales, bias, out, M, N, K, blocks, tiles_k,
    TILE_OUTS: tl.constexpr, BLOCKS_PER_TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr, HARDWARE: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """As group_product._group_product. BLOCKS_PER_TILE 0: one scale per output."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK)
    there = n < N
    each = tl.cdiv(blocks, SPLIT)
    first = tl.program_id(1) * each
    line = q + n.to(tl.int64)[:, None] * K + k[None, :]  # [BLOCK_N, BLOCK]
    rows = x + m.to(tl.int64)[None, :] * K + k[:, None]  # [BLOCK, BLOCK_M], x from top to bottom
    scale_line = scales + (n // TILE_OUTS).to(tl.int64) * tiles_k
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for block in range(first, tl.minimum(first + each, blocks)):
        weight = tl.load(line + block * BLOCK, mask=there[:, None], other=0, eviction_policy="evict_first")
        values = tl.load(rows + block * BLOCK, mask=(m < M)[None, :], other=0.0)
        wide = _widened(weight, x, HARDWARE)
        if BLOCKS_PER_TILE == 0:
            total = tl.dot(wide, values, total, input_precision=PRECISION)
        else:
            scale = tl.load(scale_line + block // BLOCKS_PER_TILE, mask=there, other=0.0)
            total += scale[:, None] * tl.dot(wide, values, input_precision=PRECISION)
    if BLOCKS_PER_TILE == 0:
        total *= tl.load(scale_line, mask=there, other=0.0)[:, None]
    if BIAS and SPLIT == 1:
        total += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[:, None]
    to = out + (tl.program_id(1) * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(to, total.to(out.dtype.element_ty), mask=there[:, None] & (m < M)[None, :])


def block_of(weights: FloatWeights) -> int:
    """Inputs that a program reads at a time; 0: tiles or sizes that there is no kernel for."""
    tile = weights.inputs if weights.is_per_output else weights.tile_inputs
    sizes = (block for block in BLOCKS if weights.inputs % block == 0 and tile % block == 0)
    return next(sizes, 0)


def product(
    x: torch.Tensor,  # [rows, inputs]
    weights: FloatWeights,
    bias: torch.Tensor | None,
    tiles: GroupTiles | None = None,
) -> torch.Tensor:  # [rows, outs]
    """x @ w.T + bias, of any number of rows, with weights that `block_of` has a block for."""
    x = x.contiguous()
    rows, (outs, inputs) = len(x), (weights.outs, weights.inputs)
    if rows > MOST_ROWS:
        if multiplies_fp8(x, weights):
            return scaled_product(x, weights, bias)
        return torch.nn.functional.linear(x, weights.dense(x.dtype), bias)
    out = torch.empty(rows, outs, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    block = block_of(weights)
    tiles = tiles or default_tiles(rows, outs, inputs // block)
    parts = out if tiles.split == 1 else torch.empty(tiles.split, rows, outs, dtype=torch.float32, device=x.device)
    per_tile = 0 if weights.is_per_output else weights.tile_inputs // block
    _float_product[(triton.cdiv(outs, tiles.block_n), tiles.split)](
        x, weights.q.view(torch.uint8), weights.scales, x if bias is None else bias, parts, rows, outs, inputs,
        inputs // block, weights.scales.shape[1], TILE_OUTS=weights.tile_outs, BLOCKS_PER_TILE=per_tile, BLOCK=block,
        BLOCK_M=rows_block(rows), BLOCK_N=tiles.block_n, SPLIT=tiles.split, BIAS=bias is not None,
        HARDWARE=_has_fp8(x.device), PRECISION=precision(x), num_warps=tiles.warps, num_stages=tiles.stages,
        **dependent_launch(x),
    )  # fmt: skip
    return out if tiles.split == 1 else add_parts(parts, bias, out)


def multiplies_fp8(x: torch.Tensor, weights: FloatWeights) -> bool:
    """Whether `scaled_product` takes these."""
    fits = weights.is_per_output and weights.outs % 16 == 0 and weights.inputs % 16 == 0
    return fits and x.dtype == torch.bfloat16 and _has_fp8(x.device)


def scaled_product(x: torch.Tensor, weights: FloatWeights, bias: torch.Tensor | None) -> torch.Tensor:
    """Both in FP8: a scale per row, or the one that the checkpoint measured."""
    if weights.input_scale is None:
        scale = x.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / LARGEST
    else:
        scale = weights.input_scale.expand(len(x), 1).contiguous()
    q = (x / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return torch._scaled_mm(q, weights.q.t(), scale, weights.scales.t(), bias=bias, out_dtype=x.dtype)


@functools.cache
def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
