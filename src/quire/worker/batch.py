"""Batch: everything that one forward pass needs, frozen.

The runner builds it from the plan and the row tables; models and attention read it and nothing else.
Requests lie one after the other; request r owns tokens query_starts[r] .. query_starts[r + 1]:

    input_ids   | r0 r0 r0 | r1 | r2 r2 | ...          [tokens]
    positions   |  5  6  7 | 90 |  0  1 | ...          position of each token in its own request
    kv of r0    [0, 5) computed earlier | [5, 8) written by this pass, then read
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's inputs. Tensors live on the device; the host integers beside them are upper bounds.

    Attributes:
        input_ids: [tokens].
        positions: [tokens].
        slots: [tokens] int64; where this token's K and V go: block * block_size + offset.
        rows: [requests]; the row of each request in the tables.
        query_starts: [requests + 1] int32; cumulative token counts.
        kv_lens: [requests] int32; tokens that attention sees: computed before, plus this step's.
        block_tables: [rows, blocks] int32, of all rows: request r has line rows[r]; unused entries are block 0.
        logits_index: [samples]; the tokens whose hidden state becomes logits.
        kv: one KV tensor per layer, in the shape that the attention backend asked for.
        block_size: tokens per block.
        counts: tokens of each request in this step, on the host.
        kv_bounds: an upper bound of each kv_len, on the host.
        inserts: (places [n], vectors [n, hidden]): tokens of this step whose embedding is not looked up; mostly none.
        attention_plan: what the backend's `plan` returned for this step.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    rows: torch.Tensor
    query_starts: torch.Tensor
    kv_lens: torch.Tensor
    block_tables: torch.Tensor
    logits_index: torch.Tensor
    kv: tuple[torch.Tensor, ...]
    block_size: int
    counts: tuple[int, ...]
    kv_bounds: tuple[int, ...]
    inserts: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    attention_plan: Any = None

    def planned(self, attention_plan: Any) -> Batch:
        """The same step with what the attention backend prepared for it."""
        return replace(self, attention_plan=attention_plan)
