"""act(gate) * up in Triton, for the activations of gated MLPs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.worker.kernels.launch import dependent_launch

BLOCK = 1024


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def soft_capped(x, cap):
    """cap * tanh(x / cap) in float32. By the sigmoid alone small x would keep few digits."""
    u = x / cap
    square = u * u
    near = u * (1 + square * (-0.333333333 + square * (0.133333333 - square * 0.0539682540)))
    return cap * tl.where(square < 0.04, near, 2 * tl.sigmoid(2 * u) - 1)


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        y = tl.maximum(x, 0.0)
    return y


@triton.jit
def _gated(x, out, width, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x [tokens, gate | up] -> out [tokens, width]; a program takes BLOCK columns of one token."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    if PDL:
        tl.extra.cuda.gdc_wait()
    gate = tl.load(x + token * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(x + token * 2 * width + width + column, mask=inside, other=0.0)
    value = _activate(gate.to(tl.float32), KIND).to(gate.dtype)
    tl.store(out + token * width + column, value * up, mask=inside)


def gated(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x [tokens, 2 * width] -> [tokens, width]; `kind` is silu, gelu, gelu_tanh or relu."""
    width = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    tokens = x.numel() // (2 * width)
    if tokens:
        grid = (tokens, triton.cdiv(width, BLOCK))  # the second axis ends at 65,535
        _gated[grid](x, out, width, KIND=kind, BLOCK=BLOCK, num_warps=4, **dependent_launch(x))
    return out
