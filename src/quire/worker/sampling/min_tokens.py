"""No end token before `min_tokens` tokens were generated."""

from __future__ import annotations

import torch

from quire.messages import NewRow
from quire.worker.sampling.protocol import Column, SamplingBatch, Stage
from quire.worker.transfer import upload


class MinTokens(Stage):
    """Forbids the stop tokens of a row while the new token's index is below prompt + min_tokens."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._until = Column(num_rows, 0, torch.int64, device)
        self._stop_ids: list[list[int]] = [[] for _ in range(num_rows)]

    def wants(self, new: NewRow) -> bool:
        """Only rows that ask for a minimum and could end early."""
        return new.params.min_tokens > 0 and bool(new.stop_token_ids)

    def start(self, new: NewRow) -> None:
        """Remember until when, and what."""
        self._until.set(new.row, new.num_prompt + new.params.min_tokens)
        self._stop_ids[new.row] = new.stop_token_ids

    def clear(self, row: int) -> None:
        """Nothing is forbidden."""
        self._until.clear(row)
        self._stop_ids[row] = []

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """-inf at (sample, stop token) wherever it is too early."""
        pairs = [(i, token) for i, row in enumerate(batch.row_list) for token in self._stop_ids[row]]
        sample, token = upload(torch.tensor(pairs), logits.device).T
        early = (batch.positions < self._until.of(batch.rows))[sample]
        logits[sample, token] = logits[sample, token].masked_fill(early, float("-inf"))
        return logits
