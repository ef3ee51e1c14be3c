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
    forbidden = np.zeros((len(logits), vocab), dtype=bool)
    forbidden[list(batch.masks)] = np.unpackbits(~bits, axis=1, bitorder="little")[:, :vocab]
    return logits.masked_fill_(upload(torch.from_numpy(forbidden), logits.device), float("-inf"))
