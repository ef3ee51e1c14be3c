"""Paged attention in C++, for CPUs: reads the cache where it lies, cut over all threads. See `cpp/attention.cpp`.

kv      [num_blocks, num_kv_heads, 2, block_size * head_dim]      inside a block as the kernels like it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.worker.attention.protocol import AttentionSpec, GraphSupport, HeadNorms, KVSpec, Turn
from quire.worker.batch import Batch
from quire.worker.kernels import native, native_jobs

MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class _Plan:
    """Whose tokens these are; int32, contiguous."""

    rows: torch.Tensor  # [requests]
    starts: torch.Tensor  # [requests + 1]
    kv_lens: torch.Tensor  # [requests]
    slots: torch.Tensor  # [tokens] int64


class NativeAttention:
    """One kernel for single tokens and chunks; another norms, turns and stores."""

    name = "native"
    graphs: GraphSupport = "never"

    def __init__(self) -> None:
        self._library = native.library()

    def add_layer(self, spec: AttentionSpec) -> None:
        """Heads as large as the kernels' buffers."""
        if spec.head_dim > MAX_HEAD_DIM or spec.head_dim % 2:
            raise ValueError(f"heads of {spec.head_dim} numbers: an even number up to {MAX_HEAD_DIM} is possible")

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """K and V of a head side by side."""
        return (num_blocks, spec.num_kv_heads, 2, block_size * spec.head_dim)

    def plan(self, batch: Batch) -> _Plan:
        """Only the number formats."""
        return _Plan(batch.rows.int(), batch.query_starts.int(), batch.kv_lens.int(), batch.slots.contiguous())

    def store(
        self,
        qkv: torch.Tensor,
        norms: HeadNorms | None,
        turn: Turn | None,
        kv: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the protocol; k and v come back as they were, nobody needs them after this."""
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        q = torch.empty(len(qkv), heads, dim, dtype=qkv.dtype)
        q_norm, k_norm, eps = norms if norms is not None else (None, None, 0.0)
        cos, sin = turn if turn is not None else (None, None)
        job = native_jobs.Store(
            qkv.data_ptr(),
            q_norm.data_ptr() if q_norm is not None else None,
            k_norm.data_ptr() if k_norm is not None else None,
            cos.data_ptr() if cos is not None else None,
            sin.data_ptr() if sin is not None else None,
            batch.attention_plan.slots.data_ptr(),
            kv.data_ptr(),
            q.data_ptr(),
            len(qkv),
            heads,
            kv_heads,
            dim,
            batch.block_size,
            eps,
        )
        self._library.store(job, wide=qkv.dtype == torch.float32)
        _, k, v = qkv.view(len(qkv), -1, dim).split((heads, kv_heads, kv_heads), dim=1)
        return q, k, v

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: Batch, spec: AttentionSpec
    ) -> torch.Tensor:
        """See the protocol."""
        plan: _Plan = batch.attention_plan
        out = torch.empty(len(q), spec.num_heads * spec.head_dim, dtype=q.dtype)
        job = native_jobs.Attend(
            q.data_ptr(),
            kv.data_ptr(),
            out.data_ptr(),
            batch.block_tables.data_ptr(),
            plan.rows.data_ptr(),
            plan.starts.data_ptr(),
            plan.kv_lens.data_ptr(),
            batch.block_tables.stride(0),
            len(plan.rows),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            batch.block_size,
            spec.window or 0,
            spec.scale,
            spec.soft_cap or 0.0,
        )
        self._library.attend(job, wide=q.dtype == torch.float32)
        return out
