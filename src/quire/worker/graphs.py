"""Graphs: owns the CUDA graphs of steps in which every row runs one token, and the buffers they read and write.

One graph is a whole step: inputs gathered from the rows, the model, and, where nothing else is asked for, sampling and
the new tokens' way back to the host. What changes from step to step lies in pinned memory that the graph reads by
itself (`kernels/step.py`), so the host's part is to write a few numbers and to launch.

    size      1 | 2 | 4 | 8 | 16 | 24 | ...    a step of n rows takes the next one, filled up with the null row
    kind      greedy, fused, adjusted: with sampling | eager: up to the logits, where a row wants what cannot be captured

Graphs are made when they are first needed, or when there is nothing else to do; until one is there, a larger one of
less than twice the size serves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from quire.messages import StepPlan, StepResult
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.batch import Batch
from quire.worker.kernels.step import append, begin
from quire.worker.rows import Rows
from quire.worker.sampling.fused import ADJUSTED, EAGER, FUSED, GREEDY, FusedSampler

NUM_SLOTS = 4
"""Steps that may be on their way at once; the loop has two."""


def graph_sizes(most: int) -> tuple[int, ...]:
    """Sizes worth a graph of their own, up to and including `most`."""
    steps = [(1, 1), (2, 2), (4, 4), *((n, 8) for n in range(8, 256, 8)), *((n, 32) for n in range(256, 512, 32))]
    sizes = [size for size, _ in steps] + list(range(512, most, 64))
    return (*(size for size in sizes if size < most), most)


@dataclass(slots=True)
class RingResult:
    """Tokens of a captured step, in its slot of the outbox."""

    tokens: np.ndarray
    event: torch.cuda.Event

    def wait(self) -> StepResult:
        """Block until they are there."""
        self.event.synchronize()
        return StepResult(self.tokens.tolist())


class _Captured:
    """A graph, and where it leaves the logits if it does not sample."""

    def __init__(self, graph: torch.cuda.CUDAGraph, logits: torch.Tensor | None) -> None:
        self.graph = graph
        self.logits = logits


class StepGraphs:
    """Args:
    model, backend, rows, kv, sampler: what the runner drives.
    most: rows of the largest step.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: AttentionBackend,
        rows: Rows,
        kv: tuple[torch.Tensor, ...],
        sampler: FusedSampler,
        most: int,
    ) -> None:
        self._model, self._backend, self._rows, self._kv, self._sampler = model, backend, rows, kv, sampler
        self._sizes = graph_sizes(most)
        self._graphs: dict[tuple[int, str], _Captured] = {}
        self._kinds = [GREEDY]  # seen so far: what spare time is spent on
        self._pool = torch.cuda.graph_pool_handle()
        device = rows.lens.device
        self._buffers = torch.zeros(4, most, dtype=torch.int32, device=device)  # rows, ids, positions, kv_lens
        self._slots = torch.zeros(most, dtype=torch.int64, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._last = torch.arange(most, device=device)
        self._inbox = torch.zeros(NUM_SLOTS, 2, most, dtype=torch.int32).pin_memory()
        self._outbox = torch.zeros(NUM_SLOTS, most, dtype=torch.int32).pin_memory()
        self._host_inbox, self._host_outbox = self._inbox.numpy(), self._outbox.numpy()
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._count = 0
        self._events = [torch.cuda.Event() for _ in range(NUM_SLOTS)]
        self._place = np.zeros(rows.num_rows + 1, dtype=np.int64)

    def takes(self, plan: StepPlan) -> bool:
        """Whether a graph can run this step: one token for every row, and one new token from every row."""
        num = len(plan.rows)
        return num == len(plan.samples) == sum(plan.counts) and num <= self._sizes[-1]

    def launch(self, plan: StepPlan) -> RingResult | torch.Tensor:
        """Run the step: its tokens on their way, or its logits [samples, vocab] where sampling is not captured."""
        num = len(plan.rows)
        kind = self._sampler.variant(plan.rows)
        captured, size = self._pick(num, kind)
        slot = self._fill(plan, size)
        self._sampler.flush()
        captured.graph.replay()
        self._end_step(slot)
        if captured.logits is not None:
            return captured.logits[:num]
        return RingResult(self._host_outbox[slot, :num], self._events[slot])

    def capture_next(self) -> bool:
        """Make the largest graph that is missing; whether there was one."""
        for kind in self._kinds:
            for size in reversed(self._sizes):
                if (size, kind) not in self._graphs:
                    self._capture(size, kind)
                    return True
        return False

    def needed_bytes(self) -> int:
        """An upper estimate of the device memory of all graphs; found by making some."""
        device = self._slots.device
        free = [torch.cuda.mem_get_info(device)[0]]
        few = self._sizes[:4]
        for sizes in (self._sizes[-1:], few):
            for size in sizes:
                self._capture(size, ADJUSTED)
            torch.cuda.synchronize(device)
            free.append(torch.cuda.mem_get_info(device)[0])
        largest, others = free[0] - free[1], free[1] - free[2]
        return largest + -(-others // len(few)) * len(self._sizes) * len((GREEDY, FUSED, ADJUSTED, EAGER))

    def _pick(self, num: int, kind: str) -> tuple[_Captured, int]:
        if kind not in self._kinds:
            self._kinds.append(kind)
        exact = next(size for size in self._sizes if size >= num)
        for size in self._sizes:
            if exact <= size <= max(2 * num, exact) and (captured := self._graphs.get((size, kind))):
                return captured, size
        return self._capture(exact, kind), exact

    def _fill(self, plan: StepPlan, size: int) -> int:
        """Write rows and new blocks into the next slot of the inbox; blocks that are not the next one go directly."""
        slot = self._count % NUM_SLOTS
        self._events[slot].synchronize()  # long since done
        num = len(plan.rows)
        rows, blocks = self._host_inbox[slot]
        rows[:num] = plan.rows
        rows[num:size] = self._rows.num_rows
        blocks[:size] = 0
        if plan.new_blocks:
            self._place[rows[:num]] = np.arange(num)
            others = []
            for new in plan.new_blocks:
                place = self._place[new.row]
                if len(new.blocks) == 1 and new.first == plan.starts[place] // self._rows.block_size:
                    blocks[place] = new.blocks[0]
                else:
                    others.append(new)
            self._rows.grow(others)
        return slot

    def _end_step(self, slot: int) -> None:
        self._events[slot].record()
        self._count += 1

    def _capture(self, size: int, kind: str) -> _Captured:
        """Run the step once on the null row, which compiles what is missing, then capture it."""
        slot = self._count % NUM_SLOTS
        self._events[slot].synchronize()
        self._host_inbox[slot, 0, :size] = self._rows.num_rows
        self._host_inbox[slot, 1, :size] = 0
        self._sampler.flush()
        self._run(size, kind)
        self._end_step(slot)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            logits = self._run(size, kind)
        finally:
            graph.capture_end()
        self._graphs[size, kind] = _Captured(graph, logits)
        return self._graphs[size, kind]

    def _run(self, size: int, kind: str) -> torch.Tensor | None:
        """The step itself."""
        rows, ids, positions, kv_lens = self._buffers[:, :size].unbind()
        slots = self._slots[:size]
        tables = self._rows
        begin(
            self._inbox, self._counter, rows, ids, positions, slots, kv_lens,
            tables.computed, tables.tokens, tables.blocks, tables.block_size,
        )  # fmt: skip
        batch = Batch(
            input_ids=ids,
            positions=positions,
            slots=slots,
            rows=rows,
            query_starts=self._starts[: size + 1],
            kv_lens=kv_lens,
            block_tables=tables.blocks,
            logits_index=self._last[:size],
            kv=self._kv,
            block_size=tables.block_size,
            counts=(1,) * size,
            kv_bounds=(1,) * size,
        )
        batch = batch.planned(self._backend.plan(batch))
        logits = self._model.logits(self._model(batch))
        if kind == EAGER:
            self._counter += 1
            return logits
        token_ids = self._sampler.sample(kind, logits, rows, tables.lens)
        append(token_ids, rows, tables.lens, tables.tokens, self._outbox, self._counter)
        return None
