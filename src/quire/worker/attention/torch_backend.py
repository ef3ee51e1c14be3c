"""Paged attention in plain torch: the reference for every other backend, on any device and in any number format.

    kv      [num_blocks, block_size, 2, num_kv_heads, head_dim]      k and v of a token side by side

Each piece of the step gathers the blocks that it sees, masks by position, and runs dense attention. Slots that no
query of a piece sees may hold anything, NaN included: they are replaced by zeros, not multiplied by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.worker.attention.pieces import Piece, attend, chunk_pieces, decode_pieces
from quire.worker.attention.protocol import AttentionSpec, GraphSupport, HeadNorms, KVSpec, Turn
from quire.worker.batch import Batch
from quire.worker.kernels.plain import split_heads
from quire.worker.transfer import upload


@dataclass(frozen=True, slots=True)
class _Placed:
    """A piece with its indices on the device."""

    piece: Piece
    requests: torch.Tensor  # [requests]
    tokens: torch.Tensor  # [requests, count]


class TorchAttention:
    """The reference backend."""

    name = "torch"
    graphs: GraphSupport = "never"

    def add_layer(self, spec: AttentionSpec) -> None:
        """Nothing to remember."""

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """K and V interleaved by token."""
        return (num_blocks, block_size, 2, spec.num_kv_heads, spec.head_dim)

    def plan(self, batch: Batch) -> tuple[_Placed, ...]:
        """The pieces, by host bounds alone; only indices go to the device."""
        return tuple(_place(piece, batch.positions.device) for piece in (*decode_pieces(batch), *chunk_pieces(batch)))

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
        flat = kv.view(-1, 2, spec.num_kv_heads, spec.head_dim)
        flat[:, 0].index_copy_(0, batch.slots, k)
        flat[:, 1].index_copy_(0, batch.slots, v)
        return q, k, v

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: Batch, spec: AttentionSpec
    ) -> torch.Tensor:
        """See the protocol."""
        out = torch.empty_like(q)
        for placed in batch.attention_plan:
            out[placed.tokens] = self._piece(q[placed.tokens], kv, placed, batch, spec)
        return out.flatten(1)

    def _piece(
        self, q: torch.Tensor, kv: torch.Tensor, placed: _Placed, batch: Batch, spec: AttentionSpec
    ) -> torch.Tensor:
        query_positions = batch.positions[placed.tokens]  # [requests, count]
        columns = _columns(placed.piece, query_positions, batch.block_size, spec.window)  # [requests, blocks]
        width = -(-placed.piece.bound // batch.block_size)
        tables = batch.block_tables[batch.rows[placed.requests], :width].long()
        blocks = tables.gather(1, columns.clamp(max=tables.shape[1] - 1))
        keys = columns[:, :, None] * batch.block_size + torch.arange(batch.block_size, device=kv.device)
        visible = _visible(query_positions, keys.flatten(1), spec.window)  # [requests, count, keys]
        seen = visible.any(1)[:, :, None, None, None]
        pages = torch.where(seen, kv[blocks].flatten(1, 2), 0)  # [requests, keys, 2, kv_heads, head_dim]
        return attend(q, pages[:, :, 0].transpose(1, 2), pages[:, :, 1].transpose(1, 2), visible, spec)


def _place(piece: Piece, device: torch.device) -> _Placed:
    tokens = torch.tensor(piece.tokens)[:, None] + torch.arange(piece.count)
    return _Placed(piece, upload(torch.tensor(piece.requests), device), upload(tokens, device))


def _columns(piece: Piece, query_positions: torch.Tensor, block_size: int, window: int | None) -> torch.Tensor:
    """Which columns of the block table a request sees: [requests, blocks], from its first visible block on."""
    width = -(-piece.bound // block_size)
    first = torch.zeros_like(query_positions[:, :1])
    if window is not None:
        first = (query_positions[:, :1] - window + 1).clamp(min=0) // block_size
        width = min(width, (window + piece.count - 2) // block_size + 2)
    return first + torch.arange(width, device=query_positions.device)


def _visible(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[requests, count], [requests, keys] positions -> [requests, count, keys]: causal, within the window."""
    distance = queries[:, :, None] - keys[:, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
