"""Paged attention for CPUs: decoding reads K and V where they lie, through torch's embedding-bag kernel.

An embedding bag is a weighted sum of table rows chosen by index, which is both halves of attention:

    kv     [2, num_blocks, num_kv_heads, head_dim * block_size]
    K      a block of one head is [head_dim, block_size]: scores of its tokens = sum over d of q[d] * row d
    V      a block of one head is [block_size, head_dim]: the output = sum over tokens t of p[t] * row t

So no page is gathered or padded with copies. Measured on 2 AMX cores, 64 rows of 208 tokens, 12 heads of 64, bf16:
1.4 ms a layer; gathering the pages and dense attention over them takes 4.3 ms.

Masked positions must not be multiplied either, they may hold NaN. Their scores are overwritten; their V rows are
exchanged for the row of the request's own new token, whose weight there is 0.

Requests with several new tokens go through dense attention, one by one. Lengths are read on the host: it is a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from quire.worker.attention.pieces import Piece, attend, chunk_pieces, decode_pieces, wide
from quire.worker.attention.protocol import AttentionSpec, GraphSupport, HeadNorms, KVSpec, Turn
from quire.worker.batch import Batch
from quire.worker.kernels.plain import split_heads


@dataclass(frozen=True, slots=True)
class _Bags:
    """Indices of one group of single-token requests, for layers of one spec.

    Attributes:
        tokens: [requests] query tokens.
        k_rows, k_starts: bags (request, head, block) of head_dim rows of K as [-1, block_size].
        v_rows, v_starts: bags (request, head) of one row per position of V as [-1, head_dim].
        hidden: [requests, 1, positions] bool; not to be seen.
        num_blocks: columns of the block tables read.
    """

    tokens: torch.Tensor
    k_rows: torch.Tensor
    k_starts: torch.Tensor
    v_rows: torch.Tensor
    v_starts: torch.Tensor
    hidden: torch.Tensor
    num_blocks: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """A step's pieces, and where its tokens go; bags are made once per spec, by the first layer that has it."""

    page: torch.Tensor  # [tokens] slots // block_size
    offset: torch.Tensor  # [tokens] slots % block_size
    decodes: tuple[Piece, ...]
    chunks: tuple[Piece, ...]
    bags: dict[AttentionSpec, tuple[_Bags, ...]] = field(default_factory=dict)


class CPUAttention:
    """Embedding-bag attention for decoding, dense attention for chunks."""

    name = "cpu"
    graphs: GraphSupport = "never"

    def add_layer(self, spec: AttentionSpec) -> None:
        """Nothing to remember."""

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """K transposed within its block, V as it is."""
        return (2, num_blocks, spec.num_kv_heads, spec.head_dim * block_size)

    def plan(self, batch: Batch) -> _Plan:
        """Cut the step into pieces."""
        page, offset = batch.slots // batch.block_size, batch.slots % batch.block_size
        return _Plan(page, offset, tuple(decode_pieces(batch)), tuple(chunk_pieces(batch)))

    def store(
        self,
        qkv: torch.Tensor,
        norms: HeadNorms | None,
        turn: Turn | None,
        kv: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the protocol."""
        q, k, v = split_heads(qkv, norms, turn, spec.num_heads, spec.num_kv_heads, spec.head_dim)
        plan: _Plan = batch.attention_plan
        k_pages, v_pages = _pages(kv, batch.block_size, spec)
        k_pages[plan.page, :, :, plan.offset] = k
        v_pages[plan.page, :, plan.offset] = v
        return q, k, v

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: Batch, spec: AttentionSpec
    ) -> torch.Tensor:
        """See the protocol."""
        plan: _Plan = batch.attention_plan
        if spec not in plan.bags:
            plan.bags[spec] = tuple(_make_bags(piece, kv.shape[1], batch, spec) for piece in plan.decodes)
        out = torch.empty_like(q)
        for bags in plan.bags[spec]:
            out.index_copy_(0, bags.tokens, _decode(q[bags.tokens], kv, bags, batch.block_size, spec))
        for piece in plan.chunks:
            start = piece.tokens[0]
            tokens = slice(start, start + piece.count)
            out[tokens] = _chunk(q, k, v, kv, piece, batch, spec)
        return out.flatten(1)


def _pages(kv: torch.Tensor, block_size: int, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """K [blocks, kv_heads, head_dim, block_size] and V [blocks, kv_heads, block_size, head_dim]."""
    blocks, heads = kv.shape[1:3]
    return kv[0].view(blocks, heads, spec.head_dim, block_size), kv[1].view(blocks, heads, block_size, spec.head_dim)


def _make_bags(piece: Piece, num_pages: int, batch: Batch, spec: AttentionSpec) -> _Bags:
    size, dim, window = batch.block_size, spec.head_dim, spec.window
    requests = torch.tensor(piece.requests)
    tokens = torch.tensor(piece.tokens)
    position = batch.positions[tokens][:, None]  # [requests, 1]
    width = -(-(int(position.max()) + 1) // size)
    first = torch.zeros_like(position)
    if window is not None:
        first = (position - window + 1).clamp(min=0) // size
        width = min(width, (window - 1) // size + 2)
    columns = first + torch.arange(width)  # [requests, blocks]
    tables = batch.block_tables[batch.rows[requests], : -(-piece.bound // size)]
    blocks = tables.gather(1, columns.clamp(max=tables.shape[1] - 1)).long()
    keys = (columns[:, :, None] * size + torch.arange(size)).flatten(1)  # [requests, positions]
    hidden = keys > position if window is None else (keys > position) | (keys <= position - window)

    index = torch.int32 if num_pages * spec.num_kv_heads * max(dim, size) < 1 << 31 else torch.int64
    head = torch.arange(spec.num_heads) // (spec.num_heads // spec.num_kv_heads)
    page = blocks[:, None, :] * spec.num_kv_heads + head[:, None]  # [requests, heads, blocks]
    k_rows = (page * dim).to(index)[..., None] + torch.arange(dim, dtype=index)
    v_rows = ((page * size).to(index)[..., None] + torch.arange(size, dtype=index)).flatten(2)
    own = batch.slots[tokens][:, None]  # [requests, 1]
    own_rows = ((own // size * spec.num_kv_heads + head) * size + own % size).to(index)  # [requests, heads]
    v_rows = torch.where(hidden[:, None], own_rows[..., None], v_rows)
    return _Bags(
        tokens=tokens,
        k_rows=k_rows.flatten(),
        k_starts=torch.arange(0, k_rows.numel(), dim, dtype=index),
        v_rows=v_rows.flatten(),
        v_starts=torch.arange(0, v_rows.numel(), width * size, dtype=index),
        hidden=hidden[:, None],
        num_blocks=width,
    )


def _decode(
    q: torch.Tensor, kv: torch.Tensor, bags: _Bags, block_size: int, spec: AttentionSpec
) -> torch.Tensor:  # [requests, heads, head_dim] -> the same
    weights = q[:, :, None].expand(-1, -1, bags.num_blocks, -1).flatten()
    k_table, v_table = kv[0].view(-1, block_size), kv[1].view(-1, spec.head_dim)
    scores = wide(_bag(k_table, bags.k_rows, bags.k_starts, weights)).view(*q.shape[:2], -1) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    probabilities = scores.masked_fill_(bags.hidden, -torch.inf).softmax(-1).to(q.dtype)
    return _bag(v_table, bags.v_rows, bags.v_starts, probabilities.flatten()).view_as(q)


def _bag(table: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums of table rows, rows[starts[i]] .. rows[starts[i + 1]] with their weights: [bags, columns]."""
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    piece: Piece,
    batch: Batch,
    spec: AttentionSpec,
) -> torch.Tensor:  # [count, heads, head_dim]
    """Several query tokens of one request."""
    request, token, count, size = piece.requests[0], piece.tokens[0], piece.count, batch.block_size
    first = int(batch.positions[token])
    queries = q[token : token + count]
    if first == 0 and spec.soft_cap is None and (spec.window is None or count <= spec.window):
        own = (k[token : token + count], v[token : token + count])
        return _causal(queries, *own, spec)  # nothing was cached before: no need to read it back
    low = 0 if spec.window is None else max(0, first - spec.window + 1) // size
    blocks = batch.block_tables[batch.rows[request], low : -(-(first + count) // size)].long()
    k_pages, v_pages = _pages(kv, size, spec)
    keys = k_pages[blocks].permute(1, 0, 3, 2).flatten(1, 2)  # [kv_heads, keys, head_dim]
    values = v_pages[blocks].transpose(0, 1).flatten(1, 2)
    end = first + count - low * size  # what lies behind has not been written
    distance = torch.arange(first, first + count)[:, None] - torch.arange(low * size, first + count)
    visible = distance >= 0 if spec.window is None else (distance >= 0) & (distance < spec.window)
    unseen = (~visible.any(0))[None, :, None]
    keys, values = keys[:, :end].masked_fill(unseen, 0), values[:, :end].masked_fill(unseen, 0)
    return attend(queries[None], keys[None], values[None], visible[None], spec)[0]


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Dense causal attention of a request's first tokens over themselves."""
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        is_causal=True,
        scale=spec.scale,
        enable_gqa=spec.num_heads != spec.num_kv_heads,
    )
    return out[0].transpose(0, 1)
