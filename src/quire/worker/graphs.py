"""Graphs: owns the CUDA graphs of steps, and the buffers they read and write.

One graph is a whole step: inputs gathered from the rows, the model, and, where nothing else is asked for, sampling and
the new tokens' way back to the host. What changes from step to step goes through the ring, so the host's part is to
write some numbers and to launch. Two shapes of step have graphs:

    decode    every row runs one token and yields one      size = rows
    mixed     any few tokens of any rows                    size = (tokens, rows); where launching would take longer

A step takes the next size up; places that are over belong to the null row.
Each shape comes in kinds: greedy, fused, adjusted are with sampling; eager ends with the logits, where a row wants what
cannot be captured, or waits for its mask. Graphs are made when first needed, and in spare time, largest first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from quire.messages import StepPlan
from quire.worker.attention.triton_backend import TritonAttention
from quire.worker.batch import Batch
from quire.worker.kernels.launch import aligned
from quire.worker.kernels.step import advance, append, begin, gather
from quire.worker.ring import Ring, RingResult
from quire.worker.rows import Rows
from quire.worker.sampling.fused import ADJUSTED, EAGER, FUSED, GREEDY, FusedSampler
from quire.worker.sizes import good_sizes

RARE = 2
"""So often a mixed step of a new size runs without a graph."""

KINDS = (GREEDY, FUSED, ADJUSTED, EAGER)
Size = TypeVar("Size")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a captured step is made of."""

    model: nn.Module
    backend: TritonAttention
    rows: Rows
    kv: tuple[torch.Tensor, ...]
    sampler: FusedSampler


def _used_bytes(device: torch.device) -> np.ndarray:
    """(in the hands of torch's allocator, of everybody else) on the device."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return np.array([reserved, total - free - reserved])


class _Captured:
    """A graph, and where it leaves the logits if it does not sample."""

    def __init__(self, graph: torch.cuda.CUDAGraph, logits: torch.Tensor | None) -> None:
        self.graph = graph
        self.logits = logits


class StepGraphs(ABC, Generic[Size]):
    """The graphs of one shape of step.

    Args:
        width: numbers that the host says to a step, at most.
        most: rows of the largest step.
        pool: of graph memory, shared between shapes: no two steps run at once.
    """

    def __init__(self, parts: Parts, width: int, most: int, pool: Any) -> None:
        self._parts = parts
        self._pool = pool
        self._ring = Ring(width, most, parts.rows.lens.device)
        self._graphs: dict[tuple[Size, str], _Captured] = {}
        self._warm: set[str] = set()
        self._kinds = [GREEDY, FUSED]  # what spare time is spent on; others when they were seen once

    @abstractmethod
    def takes(self, plan: StepPlan) -> bool:
        """Whether a graph can run this step."""

    @abstractmethod
    def _sizes(self) -> tuple[Size, ...]:
        """Sizes to capture in spare time, in this order."""

    @abstractmethod
    def _rehearsed(self) -> tuple[Size, ...]:
        """Sizes between which different kernels are launched, a large one first."""

    @abstractmethod
    def _fitting(self, plan: StepPlan) -> list[Size]:
        """Sizes that may run this step: the one to capture for it, then others that would do."""

    @abstractmethod
    def _fill(self, inbox: np.ndarray, size: Size, plan: StepPlan | None) -> None:
        """Write what the step needs to know; None is a step of the null row only."""

    @abstractmethod
    def _send(self, slot: int, size: Size) -> None:
        """Bring a slot of the inbox to the device, if the step does not read it there itself."""

    @abstractmethod
    def _run(self, size: Size, kind: str) -> torch.Tensor | None:
        """The step itself; its logits if the kind is EAGER."""

    def launch(self, plan: StepPlan) -> RingResult | torch.Tensor:
        """Run the step: its tokens on their way, or its logits [samples, vocab] where sampling is not captured."""
        num = len(plan.samples)
        kind = EAGER if plan.masked else self._parts.sampler.variant([plan.rows[index] for index in plan.samples])
        size = self._pick(plan, kind)
        captured = self._graphs[size, kind]
        slot = self._ring.next_slot()
        self._fill(self._ring.host_inbox[slot], size, plan)
        self._send(slot, size)
        self._parts.sampler.flush()
        captured.graph.replay()
        result = self._ring.launched(num)
        return result if captured.logits is None else captured.logits[:num]

    def rehearsals(self) -> list[Callable[[], object]]:
        """Steps that between them launch every kernel that most graphs hold; for tables that do not count."""
        return [partial(self._run, size, kind) for size, kind in self._rehearsal()]

    def rehearse(self) -> None:
        """Run these steps, so that all their kernels are loaded and have the memory that they need."""
        for size, kind in self._rehearsal():
            self._warm_up(size, kind)

    def _rehearsal(self) -> list[tuple[Size, str]]:
        large, *small = self._rehearsed()
        return [(large, kind) for kind in KINDS] + [(size, kind) for size in small for kind in (GREEDY, FUSED)]

    def capture_next(self) -> bool:
        """Make a graph that is missing; whether there was one."""
        for kind in self._kinds:
            for size in self._sizes():
                if (size, kind) not in self._graphs:
                    self.capture(size, kind)
                    return True
        return False

    def forget_smallest(self) -> None:
        """Drop the graphs that multiply by one line."""

    def needed_bytes(self) -> tuple[int, int]:
        """Upper estimates of the device memory of all graphs, of torch's and of the driver's; found by making some."""
        device = self._parts.rows.lens.device
        sizes = self._sizes()
        used = [_used_bytes(device)]
        for some in (sizes[:1], sizes[-4:]):
            for size in some:
                self.capture(size, GREEDY)
            torch.cuda.synchronize(device)
            used.append(_used_bytes(device))
        largest, others = used[1] - used[0], used[2] - used[1]
        torchs, drivers = largest + -(-others // 4) * len(sizes) * len(KINDS)
        return int(torchs), int(drivers)

    def capture(self, size: Size, kind: str) -> None:
        """Capture a step of the null row. The first of its kind runs before that: libraries set themselves up then.

        Relaxed, as a kernel that is compiled or loaded meanwhile does what other modes forbid.
        """
        if kind not in self._warm:
            self._warm_up(size, kind)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
        try:
            logits = self._run(size, kind)
        finally:
            graph.capture_end()
        self._graphs[size, kind] = _Captured(graph, logits)

    def _warm_up(self, size: Size, kind: str) -> None:
        self._warm.add(kind)
        slot = self._ring.next_slot()
        self._fill(self._ring.host_inbox[slot], size, None)
        self._send(slot, size)
        self._parts.sampler.flush()
        self._run(size, kind)
        self._ring.launched(0)
        torch.cuda.current_stream().synchronize()

    def _pick(self, plan: StepPlan, kind: str) -> Size:
        if kind not in self._kinds:
            self._kinds.append(kind)
        fitting = self._fitting(plan)
        for size in fitting:
            if (size, kind) in self._graphs:
                return size
        self.capture(fitting[0], kind)
        return fitting[0]

    def _finish(self, batch: Batch, kind: str, rows: torch.Tensor) -> torch.Tensor | None:
        """Model, sampling of `rows` [samples] and the end of the step, as far as the kind goes."""
        parts, tables = self._parts, self._parts.rows
        hidden = parts.model(batch)
        if len(batch.logits_index) != len(hidden):
            hidden = hidden[batch.logits_index]
        logits = parts.model.logits(hidden)
        if kind == EAGER:
            self._ring.counter += 1
            return parts.sampler.keep(logits)
        token_ids = parts.sampler.sample(kind, logits, rows, tables.lens)
        append(token_ids, rows, tables.lens, tables.tokens, self._ring.outbox, self._ring.counter)
        return None


class DecodeGraphs(StepGraphs[int]):
    """One token of every row: the device reads rows and new blocks from the inbox by itself.

    inbox   | rows [most] | new blocks [most], 0 where none |
    """

    def __init__(self, parts: Parts, most: int, pool: Any) -> None:
        super().__init__(parts, 2 * most, most, pool)
        device = parts.rows.lens.device
        self._most = most
        self._buffers = torch.zeros(4, aligned(most), dtype=torch.int32, device=device)
        self._slots = torch.zeros(most, dtype=torch.int64, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._place = np.zeros(parts.rows.num_rows + 1, dtype=np.int64)
        self._all_sizes = decode_sizes(most)

    def takes(self, plan: StepPlan) -> bool:
        """One token for every row, and one new token from every row."""
        num = len(plan.rows)
        return num == len(plan.samples) == sum(plan.counts) and num <= self._most

    def forget_smallest(self) -> None:
        """Those of one row."""
        torch.cuda.current_stream().synchronize()
        for kind in KINDS:
            self._graphs.pop((1, kind), None)

    def _sizes(self) -> tuple[int, ...]:
        return self._all_sizes[::-1]

    def _rehearsed(self) -> tuple[int, ...]:
        """One row has its products, few rows are cut for attention and sampling, from 132 lines norms are others."""
        return (self._most, *(size for size in (1, 8, 48, 96) if size < self._most))

    def _fitting(self, plan: StepPlan) -> list[int]:
        num = len(plan.rows)
        sizes = [size for size in self._all_sizes if size >= num]
        return [size for size in sizes if size <= max(2 * num, sizes[0])]

    def _fill(self, inbox: np.ndarray, size: int, plan: StepPlan | None) -> None:
        rows, blocks = inbox[: self._most], inbox[self._most :]
        num = 0 if plan is None else len(plan.rows)
        rows[num:size] = self._parts.rows.num_rows
        blocks[:size] = 0
        if plan is None:
            return
        rows[:num] = plan.rows
        if not plan.new_blocks:
            return
        self._place[rows[:num]] = np.arange(num)
        others = []
        for new in plan.new_blocks:
            place = self._place[new.row]
            if len(new.blocks) == 1 and new.first == plan.starts[place] // self._parts.rows.block_size:
                blocks[place] = new.blocks[0]
            else:
                others.append(new)
        self._parts.rows.grow(others)

    def _send(self, slot: int, size: int) -> None:
        """The device reads it there."""

    def _run(self, size: int, kind: str) -> torch.Tensor | None:
        rows, ids, positions, kv_lens = self._buffers[:, :size].unbind()
        slots, starts = self._slots[:size], self._starts[: size + 1]
        tables = self._parts.rows
        begin(
            self._ring.inbox.view(-1, 2, self._most), self._ring.counter, rows, ids, positions, slots, kv_lens,
            tables.computed, tables.tokens, tables.blocks, tables.block_size,
        )  # fmt: skip
        batch = Batch(
            input_ids=ids,
            positions=positions,
            slots=slots,
            rows=rows,
            query_starts=starts,
            kv_lens=kv_lens,
            block_tables=tables.blocks,
            logits_index=starts[:size],
            kv=self._parts.kv,
            block_size=tables.block_size,
            counts=(1,) * size,
            kv_bounds=(1,) * size,
        )
        return self._finish(batch.planned(self._parts.backend.plan(batch)), kind, rows)


class MixedGraphs(StepGraphs[tuple[int, int]]):
    """A few tokens of any rows: what the host says is copied to the device before the graph runs.

    inbox   | rows, one more | query starts, one more | request of each token | place of each sample's logits |
            | row of each sample | requests that decode | tile requests | tile starts |

    Tokens that fill up the step belong to one request more, of the null row.
    """

    def __init__(self, parts: Parts, most_tokens: int, most: int, pool: Any) -> None:
        self._token_sizes = good_sizes(most_tokens)
        self._row_sizes = (*(size for size in (16, 32, 64, 128, 256, 512) if size < most), most)
        largest = (self._token_sizes[-1], most)
        self._tile = parts.backend.tile_tokens()
        self._asked: Counter[tuple[int, int]] = Counter()
        super().__init__(parts, sum(self._layout(largest)), most, pool)
        self._buffer = torch.zeros(sum(self._layout(largest)), dtype=torch.int32, device=parts.rows.lens.device)

    def takes(self, plan: StepPlan) -> bool:
        """Few enough tokens, and a size that comes often: the first few times it is sooner done without."""
        if not plan.samples or sum(plan.counts) > self._token_sizes[-1]:
            return False
        size = self._fitting(plan)[0]
        if sum(-(-count // self._tile) for count in plan.counts if count > 1) > self._num_tiles(size[0]):
            return False
        if any((size, kind) in self._graphs for kind in self._kinds):
            return True
        self._asked[size] += 1
        room = len(self._graphs) < len(self._token_sizes) * len(KINDS)  # as many as `needed_bytes` counts
        return self._asked[size] > RARE and room

    def _sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple((tokens, self._row_sizes[0]) for tokens in self._token_sizes[::-1])

    def _rehearsed(self) -> tuple[tuple[int, int], ...]:
        """Small steps have fewer tiles than the GPU multiprocessors."""
        tokens, rows = self._token_sizes, self._row_sizes
        return ((tokens[-1], rows[-1]), (tokens[0], rows[0]), (tokens[len(tokens) // 2], rows[len(rows) // 2]))

    def _fitting(self, plan: StepPlan) -> list[tuple[int, int]]:
        tokens, num = sum(plan.counts), len(plan.rows)
        row_size = next(size for size in self._row_sizes if size >= num)
        return [(next(size for size in self._token_sizes if size >= tokens), row_size)]

    def _layout(self, size: tuple[int, int]) -> list[int]:
        """Lengths of the inbox's parts, each a multiple of four."""
        tokens, rows = size
        tiles = self._num_tiles(tokens)
        return [aligned(n) for n in (rows + 1, rows + 2, tokens, rows, rows, rows, tiles, tiles)]

    def _num_tiles(self, tokens: int) -> int:
        """Query tiles in a step: as many as it takes, and a few that are not full."""
        return -(-tokens // self._tile) + 7

    def _fill(self, inbox: np.ndarray, size: tuple[int, int], plan: StepPlan | None) -> None:
        layout = self._layout(size)
        ends = np.cumsum(layout)
        parts = np.split(inbox[: ends[-1]], ends[:-1])
        rows, starts, requests, logits_index, sample_rows, decode, tile_requests, tile_starts = parts
        tokens, null_row = size[0], self._parts.rows.num_rows
        num = 0 if plan is None else len(plan.rows)
        counts = np.asarray([] if plan is None else plan.counts, dtype=np.int32)
        samples = np.asarray([] if plan is None else plan.samples, dtype=np.int64)
        total = int(counts.sum())
        rows[num:], starts[0], starts[num + 1 :] = null_row, 0, tokens
        requests[total:] = num
        logits_index[len(samples) :], sample_rows[len(samples) :] = 0, null_row
        decode[:], tile_requests[:] = -1, -1
        if plan is None:
            return
        rows[:num] = plan.rows
        np.cumsum(counts, out=starts[1 : num + 1])
        requests[:total] = np.repeat(np.arange(num), counts)
        logits_index[: len(samples)] = starts[samples + 1] - 1
        sample_rows[: len(samples)] = rows[samples]
        single = np.flatnonzero(counts == 1)
        decode[: len(single)] = single
        bounds = np.asarray(plan.starts) + counts
        whose, first = self._parts.backend.tiles(np.flatnonzero(counts > 1), counts, bounds)
        tile_requests[: len(whose)], tile_starts[: len(first)] = whose, first
        self._parts.rows.grow(plan.new_blocks)

    def _send(self, slot: int, size: tuple[int, int]) -> None:
        length = sum(self._layout(size))
        self._buffer[:length].copy_(self._ring.inbox[slot, :length], non_blocking=True)

    def _run(self, size: tuple[int, int], kind: str) -> torch.Tensor | None:
        tokens, num_rows = size
        layout = self._layout(size)
        rows, starts, requests, logits_index, sample_rows, decode, tile_requests, tile_starts = self._buffer[
            : sum(layout)
        ].split(layout)
        rows, starts, sample_rows = rows[: num_rows + 1], starts[: num_rows + 2], sample_rows[:num_rows]
        requests, logits_index, decode = requests[:tokens], logits_index[:num_rows], decode[:num_rows]
        tables, backend = self._parts.rows, self._parts.backend
        ids, positions, slots, kv_lens = gather(
            rows, starts, requests, tables.computed, tables.tokens, tables.blocks, tables.block_size
        )
        batch = Batch(
            input_ids=ids,
            positions=positions,
            slots=slots,
            rows=rows,
            query_starts=starts,
            kv_lens=kv_lens,
            block_tables=tables.blocks,
            logits_index=logits_index,
            kv=self._parts.kv,
            block_size=tables.block_size,
            counts=(),
            kv_bounds=(),
        )
        batch = batch.planned(backend.fixed_plan(batch, decode, tile_requests, tile_starts))
        logits = self._finish(batch, kind, sample_rows)
        advance(rows, kv_lens, tables.computed)
        return logits


def decode_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows worth a graph of their own, up to and including `most`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 512, 32), *range(512, most, 64)]
    return (*(size for size in sizes if size < most), most)
