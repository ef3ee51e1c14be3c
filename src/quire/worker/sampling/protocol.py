"""What a sampler stage is. A new one is a file beside this and a name in `sampler.STAGES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from quire.messages import NewRow
from quire.worker.transfer import upload


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows that sample in this step, in the order of their logits.

    Attributes:
        rows: [samples] int64, on the device.
        positions: [samples] int64; the index that the new token gets in its request.
        row_list: the rows again, on the host.
        masks: sample index → bitmask of allowed tokens, from the grammar.
        tokens: [rows, length]; the rows' table of all their tokens.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    row_list: tuple[int, ...]
    masks: dict[int, bytes]
    tokens: torch.Tensor


class Stage(ABC):
    """One change to the logits. It owns whatever it must know of each row."""

    @abstractmethod
    def wants(self, new: NewRow) -> bool:
        """Whether this row needs the stage. A stage that no row of the step needs is skipped."""

    @abstractmethod
    def start(self, new: NewRow) -> None:
        """A row that wants the stage begins: remember its values."""

    @abstractmethod
    def clear(self, row: int) -> None:
        """The row is used by a request that does not want the stage: back to neutral values."""

    @abstractmethod
    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Logits [samples, vocab] float32, changed in place or anew. Rows with neutral values stay as they are."""

    def observe(self, batch: SamplingBatch, token_ids: torch.Tensor) -> None:  # noqa: B027 - most stages do not care
        """These tokens [samples] were sampled."""


class Column:
    """One number per row: written on the host, gathered on the device; uploaded only after a change."""

    def __init__(self, num_rows: int, neutral: float, dtype: torch.dtype, device: torch.device) -> None:
        self.host = np.full(num_rows, neutral, dtype={torch.float32: np.float32, torch.int64: np.int64}[dtype])
        self._neutral = neutral
        self._device = device
        self._table = torch.from_numpy(self.host.copy()).to(device)
        self._changed = False

    def clear(self, row: int) -> None:
        """Back to the neutral value."""
        self.set(row, self._neutral)

    def set(self, row: int, value: float) -> None:
        """Write a row's value."""
        if self.host[row] != value:
            self.host[row] = value
            self._changed = True

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """The values of these rows, on the device."""
        if self._changed:
            self._changed = False
            self._table = upload(torch.from_numpy(self.host.copy()), self._device)
        return self._table[rows]
