"""Rotary positions in Triton: the turns of a step, and one kernel that norms, turns, and fills the cache.

qkv of a token   | q head 0 | q head 1 | ... | k head 0 | ... | v head 0 | ... |
                   norm, turn, in place        norm, turn,      as it is,
                                               into the page    into the page
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.worker.kernels.launch import dependent_launch, next_power_of_2

HEADS = 16
"""Heads per program."""


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["positions", "cos", "sin"])
def _turns(
    positions, frequency, cos, sin, scale, total, HALF: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """cos, sin [tokens, HALF] of positions [tokens] * frequency [HALF]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    turn = tl.load(frequency + index % HALF, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    angle = tl.load(positions + index // HALF, mask=inside, other=0).to(tl.float32) * turn
    tl.store(cos + index, (tl.cos(angle) * scale).to(cos.dtype.element_ty), mask=inside)
    tl.store(sin + index, (tl.sin(angle) * scale).to(sin.dtype.element_ty), mask=inside)


def turns(
    positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions [tokens], frequency [head_dim / 2] float32 -> cos, sin [tokens, head_dim / 2]."""
    half = frequency.numel()
    cos, sin = torch.empty(2, len(positions), half, dtype=dtype, device=positions.device).unbind()
    total = cos.numel()
    if total:
        _turns[(triton.cdiv(total, 256),)](
            positions, frequency, cos, sin, scale, total, HALF=half, BLOCK=256, num_warps=2, **dependent_launch(cos)
        )
    return cos, sin


@triton.jit(do_not_specialize_on_alignment=["slots", "cos", "sin"])
def _store(
    qkv, q_weight, k_weight, cos, sin, kv, slots,
    eps, block_stride, kind_stride, head_stride,
    NUM_Q: tl.constexpr, NUM_K: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, HALF_P: tl.constexpr,
    PAGE: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr, TURN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program takes HEADS heads of one token, as two halves [HEADS, HALF]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    GROUPS: tl.constexpr = (NUM_Q + 2 * NUM_K + HEADS - 1) // HEADS  # one axis only: the others end at 65,535
    token = (tl.program_id(0) // GROUPS).to(tl.int64)
    head = tl.program_id(0) % GROUPS * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF_P)[None, :]
    is_q, is_v = head < NUM_Q, head >= NUM_Q + NUM_K
    inside = (head < NUM_Q + 2 * NUM_K) & (column < HALF)
    if NORM:
        q_low = tl.load(q_weight + column, mask=column < HALF, other=0.0)
        q_high = tl.load(q_weight + HALF + column, mask=column < HALF, other=0.0)
        k_low = tl.load(k_weight + column, mask=column < HALF, other=0.0)
        k_high = tl.load(k_weight + HALF + column, mask=column < HALF, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    source = qkv + token * ((NUM_Q + 2 * NUM_K) * DIM) + head * DIM + column
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + HALF, mask=inside, other=0.0)
    if NORM:
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        mean = (tl.sum(wide_low * wide_low, 1) + tl.sum(wide_high * wide_high, 1)) / DIM
        inverse = tl.rsqrt(mean + eps)[:, None]
        normed_low = (wide_low * inverse).to(low.dtype) * tl.where(is_q, q_low, k_low)
        normed_high = (wide_high * inverse).to(low.dtype) * tl.where(is_q, q_high, k_high)
        low, high = tl.where(is_v, low, normed_low), tl.where(is_v, high, normed_high)
    if TURN:
        c = tl.load(cos + token * HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
        s = tl.load(sin + token * HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
        a, b = low.to(tl.float32), high.to(tl.float32)
        turned_low, turned_high = (a * c - b * s).to(low.dtype), (b * c + a * s).to(low.dtype)
        low, high = tl.where(is_v, low, turned_low), tl.where(is_v, high, turned_high)
    tl.store(source, low, mask=inside & is_q)
    tl.store(source + HALF, high, mask=inside & is_q)
    slot = tl.load(slots + token).to(tl.int64)
    kv_head = tl.where(is_v, head - NUM_Q - NUM_K, head - NUM_Q)
    place = kv + (slot // PAGE) * block_stride + tl.where(is_v, kind_stride, 0) + kv_head * head_stride
    place += (slot % PAGE) * DIM + column
    tl.store(place, low, mask=inside & (head >= NUM_Q))
    tl.store(place + HALF, high, mask=inside & (head >= NUM_Q))


def norm_turn_store(
    qkv: torch.Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim], contiguous; q is changed in place
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,  # weights of q and k [head_dim], eps
    turn: tuple[torch.Tensor, torch.Tensor] | None,  # cos, sin [tokens, head_dim / 2]
    kv: torch.Tensor,  # [blocks, 2, kv_heads, block_size, head_dim]
    slots: torch.Tensor,  # [tokens]
    num_heads: int,
) -> None:
    """Normalise and turn q and k; q stays in qkv, k and v go to their slots."""
    num_kv_heads, page, dim = kv.shape[2:]
    if not len(qkv):
        return
    q_weight, k_weight, eps = norms if norms is not None else (qkv, qkv, 0.0)
    cos, sin = turn if turn is not None else (qkv, qkv)
    grid = (triton.cdiv(num_heads + 2 * num_kv_heads, HEADS) * len(qkv),)
    _store[grid](
        qkv, q_weight, k_weight, cos, sin, kv, slots, eps, kv.stride(0), kv.stride(1), kv.stride(2),
        NUM_Q=num_heads, NUM_K=num_kv_heads, DIM=dim, HALF=dim // 2, HALF_P=next_power_of_2(dim // 2), PAGE=page,
        HEADS=HEADS, NORM=norms is not None, TURN=turn is not None, num_warps=4, **dependent_launch(qkv),
    )  # fmt: skip
