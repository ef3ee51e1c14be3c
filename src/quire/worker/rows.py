"""Rows: owns the tables that live on the device, one line per running request.

The engine names a row; the tables say everything about it that a step needs. They change only through staged
writes, applied together at the beginning of a step, and through what the device itself samples:

    tokens[row]       prompt, output so far, and the token just sampled, which the host may not have seen
    lens[row]         how many of them there are
    computed[row]     how many of them have K and V in the cache
    blocks[row]       the block table; unused entries point to block 0

One line more than there are rows, the null row, pads steps to a fixed size: it has one token, in block 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from quire.messages import NewBlocks, NewRow
from quire.worker.transfer import upload


class Rows:
    """The tables.

    Args:
        num_rows: most requests that run at once.
        max_model_len: most tokens of one request.
        block_size: tokens per KV block.
        device: where the tables live.
    """

    def __init__(self, num_rows: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.block_size = block_size
        lines = num_rows + 1
        self.tokens = torch.zeros(lines, max_model_len + 1, dtype=torch.int32, device=device)
        self.blocks = torch.zeros(lines, -(-max_model_len // block_size), dtype=torch.int32, device=device)
        self.lens = torch.zeros(lines, dtype=torch.int32, device=device)
        self.computed = torch.zeros(lines, dtype=torch.int32, device=device)

    def start(self, new_rows: Sequence[NewRow]) -> None:
        """Requests take rows: at most one write per table."""
        if not new_rows:
            return
        tokens = [np.frombuffer(new.tokens, dtype=np.int32) for new in new_rows]
        _scatter(self.tokens, [(new.row, 0) for new in new_rows], tokens)
        rows = to_device([new.row for new in new_rows], self.lens.device)
        self.lens[rows] = to_device([len(ids) for ids in tokens], self.lens.device, torch.int32)
        self.computed[rows] = to_device([new.num_computed for new in new_rows], self.lens.device, torch.int32)

    def grow(self, new_blocks: Sequence[NewBlocks]) -> None:
        """Enter new blocks, in one write."""
        if new_blocks:
            values = [np.asarray(new.blocks, dtype=np.int32) for new in new_blocks]
            _scatter(self.blocks, [(new.row, new.first) for new in new_blocks], values)

    def append(self, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Put one sampled token at the end of each of these rows. Both [samples] int64."""
        self.tokens[rows, self.lens[rows].long()] = token_ids.int()
        self.lens[rows] += 1


def to_device(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Host integers on the device, without waiting for it."""
    return upload(torch.tensor(values, dtype=dtype), device)


def _scatter(table: torch.Tensor, places: Sequence[tuple[int, int]], values: Sequence[np.ndarray]) -> None:
    """table[row, column : column + len(v)] = v for each (row, column) and v, in one indexed write."""
    width = table.shape[1]
    index = np.concatenate(
        [
            np.arange(row * width + column, row * width + column + len(v))
            for (row, column), v in zip(places, values, strict=True)
        ]
    )
    flat = upload(torch.from_numpy(index), table.device)
    table.view(-1)[flat] = upload(torch.from_numpy(np.concatenate(values)), table.device)
