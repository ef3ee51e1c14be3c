"""From a plan to a Batch: which tokens, at which positions, into which slots.

Only four small integer arrays come from the host; everything else is gathered on the device from the rows.

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
from quire.worker.rows import Rows
from quire.worker.transfer import upload


def build_batch(plan: StepPlan, rows: Rows, kv: tuple[torch.Tensor, ...]) -> Batch:
    """The inputs of one forward."""
    counts = np.asarray(plan.counts, dtype=np.int64)
    num_requests, num_tokens = len(counts), int(counts.sum())
    query_starts = np.zeros(num_requests + 1, dtype=np.int64)
    np.cumsum(counts, out=query_starts[1:])
    request = np.repeat(np.arange(num_requests), counts)
    logits_index = query_starts[1:][np.asarray(plan.samples, dtype=np.int64)] - 1
    host = np.concatenate([np.asarray(plan.rows), query_starts, request, logits_index])
    packed = upload(torch.from_numpy(host), rows.lens.device)
    sizes = [num_requests, num_requests + 1, num_tokens, len(plan.samples)]
    row_of, starts_of, request_of, logits_of = packed.split(sizes)

    bounds = tuple(start + count for start, count in zip(plan.starts, plan.counts, strict=True))
    computed = rows.computed[row_of].long()
    positions = computed[request_of] + torch.arange(num_tokens, device=packed.device) - starts_of[request_of]
    block = rows.blocks[row_of[request_of], positions // rows.block_size].long()
    return Batch(
        input_ids=rows.tokens[row_of[request_of], positions].long(),
        positions=positions,
        slots=block * rows.block_size + positions % rows.block_size,
        rows=row_of,
        query_starts=starts_of.int(),
        kv_lens=(computed + starts_of.diff()).int(),
        block_tables=rows.blocks,
        logits_index=logits_of,
        kv=kv,
        block_size=rows.block_size,
        counts=tuple(plan.counts),
        kv_bounds=bounds,
    )
