"""RMSNorm in Triton, alone or with the residual sum before it: one program per line."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.worker.kernels.launch import dependent_launch, next_power_of_2


@triton.jit
def _norm(
    x, residual, weight, out, eps, size,
    ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out = norm(x [+ residual]) * weight; with ADD the sum replaces the residual. Lines are contiguous."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    scale = tl.load(weight + column, mask=inside, other=0.0)  # before the wait: weights are nobody's output
    if PDL:
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + line * size + column, mask=inside, other=0.0)
    if ADD:
        value = value + tl.load(residual + line * size + column, mask=inside, other=0.0)
        tl.store(residual + line * size + column, value, mask=inside)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    tl.store(out + line * size + column, wide.to(value.dtype) * scale, mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., size], contiguous."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, x, weight, out, eps, add=False)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, the sum), the sum in the place of `residual`."""
    out = torch.empty_like(x)
    _launch(x, residual, weight, out, eps, add=True)
    return out, residual


def _launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, *, add: bool
) -> None:
    size = x.shape[-1]
    lines = x.numel() // size
    if lines == 0:
        return
    block = next_power_of_2(size)
    warps = min(16, max(1, block // (256 if lines >= 132 else 128) // 2))
    _norm[(lines,)](x, residual, weight, out, eps, size, ADD=add, BLOCK=block, num_warps=warps, **dependent_launch(x))
