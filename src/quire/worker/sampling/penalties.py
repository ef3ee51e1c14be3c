"""Presence, frequency and repetition penalties.

    seen[row, token] = times generated + PROMPT if it stands in the prompt

Repetition (Keskar et al., CTRL, arXiv:1909.05858) counts prompt and output; the other two, as OpenAI defines them,
count the output only. The table is made when the first request asks for a penalty.
"""

from __future__ import annotations

import numpy as np
import torch

from quire.messages import NewRow
from quire.worker.sampling.protocol import Column, SamplingBatch, Stage
from quire.worker.transfer import upload

PROMPT = 1 << 24


class Penalties(Stage):
    """Owns the table of tokens seen."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (num_rows, vocab_size)
        self._device = device
        self._presence = Column(num_rows, 0.0, torch.float32, device)
        self._frequency = Column(num_rows, 0.0, torch.float32, device)
        self._repetition = Column(num_rows, 1.0, torch.float32, device)
        self._seen: torch.Tensor | None = None

    def wants(self, new: NewRow) -> bool:
        """Rows with any of the three."""
        p = new.params
        return p.presence_penalty != 0 or p.frequency_penalty != 0 or p.repetition_penalty != 1

    def start(self, new: NewRow) -> None:
        """Count the tokens that the row brings: its prompt, and its output if it was preempted."""
        if self._seen is None:
            self._seen = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        self._presence.set(new.row, new.params.presence_penalty)
        self._frequency.set(new.row, new.params.frequency_penalty)
        self._repetition.set(new.row, new.params.repetition_penalty)
        tokens = np.frombuffer(new.tokens, dtype=np.int32)
        counts = np.bincount(tokens[new.num_prompt :], minlength=self._shape[1]).astype(np.int32)
        counts[np.unique(tokens[: new.num_prompt])] += PROMPT
        self._seen[new.row] = upload(torch.from_numpy(counts), self._device)

    def clear(self, row: int) -> None:
        """No penalties; what the table says of the row no longer matters."""
        for column in (self._presence, self._frequency, self._repetition):
            column.clear(row)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Repetition first, then frequency and presence. Rows without penalties have neutral values."""
        assert self._seen is not None
        seen = self._seen[batch.rows]  # [samples, vocab]
        count = seen & (PROMPT - 1)
        repetition = self._repetition.of(batch.rows)[:, None]
        scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(seen > 0, scaled, logits)
        logits -= self._frequency.of(batch.rows)[:, None] * count
        logits -= self._presence.of(batch.rows)[:, None] * (count > 0)
        return logits

    def observe(self, batch: SamplingBatch, token_ids: torch.Tensor) -> None:
        """One more occurrence each; rows of a step are distinct, so plain indexing adds correctly."""
        assert self._seen is not None
        self._seen[batch.rows, token_ids] += 1
