"""Whole numbers of a few bits, packed into words of 32: what integer formats have in common."""

from __future__ import annotations

import torch

from quire.worker.quantization.format import FormatError


def unpack_words(words: torch.Tensor, bits: int, many: int) -> torch.Tensor:
    """int32 [lines, words] -> uint8 [lines, many], low bits first; of 3 bits, 32 values lie across three words."""
    device = words.device
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, device=device, dtype=torch.int32)
        values = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
        return values.to(torch.uint8).flatten(1)[:, :many].contiguous()
    start = torch.arange(many, device=device) * bits
    low, shift = start // 32, (start % 32)
    wide = words.long() & 0xFFFFFFFF
    high = (low + 1).clamp(max=words.shape[1] - 1)
    values = (wide[:, low] >> shift) | (wide[:, high] << (32 - shift))
    return (values & ((1 << bits) - 1)).to(torch.uint8)


def num_words(many: int, bits: int) -> int:
    """Words that so many values take."""
    return -(-many * bits // 32)


def group_order(groups: torch.Tensor | None, size: int, inputs: int) -> torch.Tensor | None:
    """Inputs in the order of their groups; None where they lie so."""
    if groups is None:
        return None
    usual = torch.arange(inputs, device=groups.device) // size
    groups = groups.long()
    if torch.equal(groups, usual):
        return None
    by_group, order = groups.sort(stable=True)
    if not torch.equal(by_group, usual):
        raise FormatError(f"g_idx does not put {size} inputs into each group")
    return order
