"""Allowed tokens from a grammar's bitmasks."""

from __future__ import annotations

import numpy as np
import torch

from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.transfer import upload


def apply_masks(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Set the logits of forbidden tokens to -inf, in the rows that have a mask."""
    if not batch.masks:
        return logits
    vocab = logits.shape[1]
    bits = np.stack([np.frombuffer(mask, dtype=np.uint8) for mask in batch.masks.values()])
    allowed = np.unpackbits(bits, axis=1, bitorder="little")[:, :vocab].astype(bool)
    index = upload(torch.tensor(list(batch.masks)), logits.device)
    forbidden = upload(torch.from_numpy(~allowed), logits.device)
    logits[index] = logits[index].masked_fill(forbidden, float("-inf"))
    return logits
