"""GGUF's block formats to floats, in plain tensor operations on whichever device the bytes are.

A row is cut in blocks; a block has small whole numbers and what they are multiplied by. K formats have 256 numbers in
groups of 16 or 32, whose scales are small numbers themselves. Layouts: ggml's `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.sources.gguf.header import TYPES

T = torch.Tensor
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 values of IQ4 stand for."""


def decode(dtype: str, raw: T) -> T:
    """raw uint8 [rows, bytes] to float32 [rows, numbers]."""
    block = BLOCKS[dtype]
    blocks = raw.reshape(-1, block.num_bytes)
    return block.decode(blocks).reshape(raw.shape[0], -1)


def _half(blocks: T, at: int) -> T:
    """The 16-bit float at a byte of each block: [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(qs: T) -> T:
    """[n, k] bytes to [n, 2k]: all low halves, then all high ones."""
    return torch.cat([qs & 15, qs >> 4], dim=1)


def _fifth_bits(qh: T) -> T:
    """[n, 4] bytes to the 32 bits of each, lowest first, as 0 or 16: [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=qh.device)
    return ((qh[:, :, None] >> shifts & 1) << 4).flatten(1)


def _q8_0(b: T) -> T:  # d | 32 int8
    return _half(b, 0) * b[:, 2:].contiguous().view(torch.int8)


def _q4_0(b: T) -> T:  # d | 16 bytes
    return _half(b, 0) * (_nibbles(b[:, 2:]).float() - 8)


def _q4_1(b: T) -> T:  # d | m | 16 bytes
    return _half(b, 0) * _nibbles(b[:, 4:]) + _half(b, 2)


def _q5_0(b: T) -> T:  # d | 4 bytes of fifth bits | 16 bytes
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).float() - 16)


def _q5_1(b: T) -> T:  # d | m | 4 bytes of fifth bits | 16 bytes
    return _half(b, 0) * (_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])) + _half(b, 2)


def _pairs(qs: T) -> T:
    """2-bit numbers of a K format: [n, 64] bytes to [n, 256]. Per half: 32 bytes' lowest pairs, their next ones, ..."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=qs.device)
    return (qs.view(-1, 2, 1, 32) >> shifts[:, None] & 3).flatten(1)


def _q2_k(b: T) -> T:  # 16 scales, minima in their high halves | 64 bytes | d | dmin
    scales = b[:, :16]
    q = _pairs(b[:, 16:80].contiguous()).view(-1, 16, 16)
    high, low = _half(b, 80) * (scales & 15), _half(b, 82) * (scales >> 4)
    return (high[:, :, None] * q - low[:, :, None]).flatten(1)


def _q3_k(b: T) -> T:  # 32 bytes of third bits | 64 bytes | 12 bytes of 6-bit scales | d
    bits = torch.arange(8, dtype=torch.uint8, device=b.device)
    third = (b[:, None, :32] >> bits[:, None] & 1).flatten(1).float()  # [n, 256]: bit by bit over all 32 bytes
    packed = b[:, 96:108]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=b.device)
    upper = (packed[:, None, 8:] >> shifts[:, None] & 3).flatten(1)
    scales = (_nibbles(packed[:, :8]) | upper << 4).float() - 32
    q = _pairs(b[:, 32:96].contiguous()).float() - 4 + 4 * third
    return ((_half(b, 108) * scales)[:, :, None] * q.view(-1, 16, 16)).flatten(1)


def _scales_and_minima(packed: T) -> tuple[T, T]:
    """12 bytes to eight 6-bit scales and eight 6-bit minima."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=1)
    minima = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=1)
    return scales, minima


def _q4_or_5_k(b: T, q: T) -> T:  # d | dmin | 12 bytes of scales | ...
    scales, minima = _scales_and_minima(b[:, 4:16])
    high, low = _half(b, 0) * scales, _half(b, 2) * minima
    return (high[:, :, None] * q.view(-1, 8, 32) - low[:, :, None]).flatten(1)


def _nibble_groups(qs: T) -> T:
    """[n, 128] bytes to [n, 256]: of each 32 bytes the low halves, then the high ones."""
    return _nibbles(qs.reshape(-1, 32)).view(qs.shape[0], 256)


def _q4_k(b: T) -> T:  # ... | 128 bytes
    return _q4_or_5_k(b, _nibble_groups(b[:, 16:]))


def _q5_k(b: T) -> T:  # ... | 32 bytes of fifth bits | 128 bytes
    bits = torch.arange(8, dtype=torch.uint8, device=b.device)
    fifth = (b[:, None, 16:48] >> bits[:, None] & 1).flatten(1) << 4
    return _q4_or_5_k(b, _nibble_groups(b[:, 48:]) | fifth)


def _q6_k(b: T) -> T:  # 128 bytes of low halves | 64 bytes of upper pairs | 16 int8 scales | d
    low = _nibbles(b[:, :128].reshape(-1, 64)).view(-1, 256)
    upper = _pairs(b[:, 128:192].contiguous())
    q = (low | upper << 4).float() - 32
    scales = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8)
    return (scales[:, :, None] * q.view(-1, 16, 16)).flatten(1)


def _iq4(q: T) -> T:
    return torch.tensor(IQ4, dtype=torch.float32, device=q.device)[q.int()]


def _iq4_nl(b: T) -> T:  # d | 16 bytes
    return _half(b, 0) * _iq4(_nibbles(b[:, 2:]))


def _iq4_xs(b: T) -> T:  # d | upper pairs of 8 scales | their low halves | 128 bytes
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=b.device)
    upper = (b[:, 2:4, None] >> shifts & 3).flatten(1)
    low = torch.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], dim=2).flatten(1)
    scales = _half(b, 0) * ((low | upper << 4).float() - 32)
    q = _iq4(_nibbles(b[:, 8:].reshape(-1, 16)).view(-1, 8, 32))
    return (scales[:, :, None] * q).flatten(1)


@dataclass(frozen=True, slots=True)
class Block:
    """numbers: in a block; decode: uint8 [n, num_bytes] to float32 [n, numbers]."""

    numbers: int
    num_bytes: int
    decode: Callable[[T], T]


_DECODERS = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
BLOCKS = {
    name: Block(numbers, num_bytes, _DECODERS[name]) for name, numbers, num_bytes in TYPES.values() if name in _DECODERS
}
"""Formats by name."""
