"""How a mixed step is cut into regular pieces, and dense attention over one of them.

tokens of a step   | r0 | r1 r1 r1 r1 | r2 | r3 |
pieces             one token: {r0, r3}, {r2} by similar length     several tokens: {r1}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F

from quire.worker.attention.protocol import AttentionSpec
from quire.worker.batch import Batch

MAX_GATHER_TOKENS = 1 << 16
"""Most tokens of KV (padded) that one group of single-token requests reads at once."""

MAX_SCORES = 1 << 23
"""Most query-key pairs of one piece of a longer chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` query tokens of each of some requests.

    Args:
        requests: indices into the batch.
        tokens: index of the first query token of each.
        count: query tokens of each.
        bound: no request of the piece has more KV than this that its last query may see.
    """

    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    count: int
    bound: int


def decode_pieces(batch: Batch) -> list[Piece]:
    """Requests with one new token, grouped so that the longest of a group does not pad the others much."""
    starts = [0, *accumulate(batch.counts)]
    single = [index for index, count in enumerate(batch.counts) if count == 1]
    single.sort(key=batch.kv_bounds.__getitem__)
    groups: list[list[int]] = []
    for index in single:
        bound = batch.kv_bounds[index]
        last = groups[-1] if groups else []
        similar = last and bound <= batch.kv_bounds[last[0]] * 1.25 + 32
        if similar and bound * (len(last) + 1) <= MAX_GATHER_TOKENS:
            last.append(index)
        else:
            groups.append([index])
    return [
        Piece(tuple(group), tuple(starts[index] for index in group), 1, batch.kv_bounds[group[-1]]) for group in groups
    ]


def chunk_pieces(batch: Batch) -> Iterator[Piece]:
    """Requests with several new tokens, one at a time, long ones in stretches of queries."""
    for index, start in enumerate(accumulate(batch.counts, initial=0)):
        count = batch.counts[index] if index < len(batch.counts) else 0
        if count < 2:
            continue
        bound = batch.kv_bounds[index]
        step = max(1, MAX_SCORES // bound)
        for done in range(0, count, step):
            size = min(step, count - done)
            yield Piece((index,), (start + done,), size, bound - count + done + size)


def attend(
    q: torch.Tensor,  # [requests, queries, num_heads, head_dim]
    k: torch.Tensor,  # [requests, num_kv_heads, keys, head_dim], finite
    v: torch.Tensor,  # [requests, num_kv_heads, keys, head_dim], finite
    visible: torch.Tensor,  # [requests, queries, keys] bool; each query sees a key
    spec: AttentionSpec,
) -> torch.Tensor:  # [requests, queries, num_heads, head_dim]
    """Masked softmax(q k) v. The query heads that share a KV head become its rows: | head 0: queries | head 1 ..."""
    num, queries, heads, dim = q.shape
    group = heads // spec.num_kv_heads
    rows = q.transpose(1, 2).reshape(num, spec.num_kv_heads, group * queries, dim)
    mask = visible[:, None, None].expand(-1, 1, group, -1, -1).reshape(num, 1, group * queries, -1)
    if spec.soft_cap is None:
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=spec.scale)
    else:
        out = _soft_capped(rows, k, v, mask, spec.scale, spec.soft_cap)
    return out.reshape(num, heads, queries, dim).transpose(1, 2)


def wide(scores: torch.Tensor) -> torch.Tensor:
    """Scores in float32 at least: scaling, capping and softmax happen there."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _soft_capped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float, cap: float
) -> torch.Tensor:
    """Scores squeezed into (-cap, cap) before the softmax (Gemma 2)."""
    scores = wide(torch.matmul(q, k.transpose(-1, -2))) * scale
    scores = (cap * torch.tanh(scores / cap)).masked_fill(~mask, -torch.inf)
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)
