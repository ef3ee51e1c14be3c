"""From a plan to a Batch: which tokens, at which positions, into which slots.

Only a few small integer arrays come from the host, in one copy; everything else is gathered on the device.

    plan      rows [r]   counts [r]
    request   0 0 0 1 2 2         index of each token's request
    offset    0 1 2 0 0 1         its place within the step
    position  computed[row] + offset,   token  tokens[row, position],   slot  from blocks[row, position // size]
"""

from __future__ import annotations

import numpy as np
import torch

from quire.messages import StepPlan
from quire.worker.batch import Batch
from quire.worker.kernels.protocol import Kernels
from quire.worker.rows import Rows
from quire.worker.transfer import upload


def build_batch(plan: StepPlan, rows: Rows, kv: tuple[torch.Tensor, ...], kernels: Kernels) -> Batch:
    """The inputs of one forward."""
    counts = np.asarray(plan.counts, dtype=np.int32)
    num_requests = len(counts)
    query_starts = np.zeros(num_requests + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    request = np.repeat(np.arange(num_requests, dtype=np.int32), counts)
    logits_index = query_starts[1:][np.asarray(plan.samples, dtype=np.int64)] - 1
    parts = (np.asarray(plan.rows, dtype=np.int32), query_starts, request, logits_index)
    packed = upload(torch.from_numpy(np.concatenate(parts)), rows.lens.device)
    row_of, starts_of, request_of, logits_of = packed.split([len(part) for part in parts])

    input_ids, positions, slots, kv_lens = kernels.gather(
        row_of, starts_of, request_of, rows.computed, rows.tokens, rows.blocks, rows.block_size
    )
    return Batch(
        input_ids=input_ids,
        positions=positions,
        slots=slots,
        rows=row_of,
        query_starts=starts_of,
        kv_lens=kv_lens,
        block_tables=rows.blocks,
        logits_index=logits_of,
        kv=kv,
        block_size=rows.block_size,
        counts=tuple(plan.counts),
        kv_bounds=tuple(start + count for start, count in zip(plan.starts, plan.counts, strict=True)),
    )
