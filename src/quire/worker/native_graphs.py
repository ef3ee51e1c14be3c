"""Captured decode steps on a CPU: what a step launches is written down once and repeated by one call.

Launching a layer from Python takes about 80 us, a tenth of a small model's step. The first step of a size is run once
with null rows, in buffers of that size, while every C++ job and torch operation is noted. Steps of so many rows or less
write the numbers of their rows into the first buffer, and repeat:

    rows      | r3 r0 r7 | null |         jobs run for as many rows as there are, torch's operations for the whole size
    program   gather, embedding, angles | norm, qkv, store, attend, ... head | most likely tokens, if all want these

That is what CUDA graphs are on a GPU, with the same demand on models: nothing may depend on values, only on shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quire.messages import StepPlan, StepResult
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.batch import Batch
from quire.worker.kernels.native import NativeLibrary
from quire.worker.kernels.native_jobs import Call
from quire.worker.rows import Rows
from quire.worker.sampling.sampler import Sampler

SIZES = (1, 8, 64)
"""Rows; more of them take long enough to hide the launching, and buffers for all layers are kept."""


@dataclass(slots=True)
class _Program:
    """Steps to repeat, in order; `kept` holds every buffer that they point to.

    rows, token_ids: [size] int32, int64; logits: [size, vocab].
    calls: the jobs among the steps; they run for `num` rows.
    choose: the most likely tokens into `token_ids`, and to the end of their rows.
    """

    rows: torch.Tensor
    steps: tuple[Callable[[], None], ...]
    choosing_steps: tuple[Callable[[], None], ...]
    calls: tuple[Call, ...]
    logits: torch.Tensor
    token_ids: torch.Tensor
    kept: list[Any]
    num: int

    def run(self, rows: list[int], *, choose: bool) -> None:
        """One step of these rows."""
        if len(rows) != self.num:
            self.num = len(rows)
            for call in self.calls:
                call.resize(self.num)
        self.rows[: self.num] = torch.tensor(rows, dtype=torch.int32)
        for step in self.choosing_steps if choose else self.steps:
            step()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Tokens that are there; see `runner.Pending`."""

    token_ids: list[int]

    def wait(self) -> StepResult:
        """At once."""
        return StepResult(self.token_ids, {}, {})


class NativeGraphs:
    """Steps of one token per row, all of them sampled. See `runner.Graphs`.

    Args:
        model, backend, rows, kv, sampler: as for the runner.
        library: whose calls are noted.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: AttentionBackend,
        rows: Rows,
        kv: tuple[torch.Tensor, ...],
        sampler: Sampler,
        library: NativeLibrary,
    ) -> None:
        self._model, self._backend, self._rows, self._kv = model, backend, rows, kv
        self._sampler, self._library = sampler, library
        self._programs: dict[int, _Program] = {}

    def takes(self, plan: StepPlan) -> bool:
        """Decodes of few rows."""
        num = len(plan.rows)
        return num <= SIZES[-1] and max(plan.counts) == 1 and len(plan.samples) == num

    def launch(self, plan: StepPlan) -> _Chosen | torch.Tensor:
        """The most likely tokens, where all rows want no more; else logits [rows, vocab], in a buffer that the next
        step overwrites. Samples are in the order of the rows."""
        self._rows.grow(plan.new_blocks)
        num = len(plan.rows)
        size = next(size for size in SIZES if size >= num)
        program = self._programs.get(size)
        if program is None:
            program = self._programs[size] = self._capture(size)
        choose = not plan.masked and self._sampler.only_most_likely(plan.rows)
        program.run(plan.rows, choose=choose)
        return _Chosen(program.token_ids[:num].tolist()) if choose else program.logits[:num]

    def capture_next(self) -> bool:
        """Sizes are captured when they come, at no cost."""
        return False

    def needed_bytes(self) -> tuple[int, int]:
        """Only a GPU's budget asks."""
        return 0, 0

    def rehearsals(self) -> list[Callable[[], object]]:
        """Nothing is compiled by steps."""
        return []

    def rehearse(self) -> None:
        """Nothing is loaded by steps."""

    def forget_smallest(self) -> None:
        """Nothing is measured on a CPU."""

    def _capture(self, size: int) -> _Program:
        """Run a step of null rows in buffers of this size, and note how."""
        rows = torch.full((size,), self._rows.num_rows, dtype=torch.int32)
        noted = _Notes()
        self._library.on_call = noted.calls.append
        try:
            batch = self._batch(rows)
            with noted:
                logits = self._model.logits(self._model(batch))
        finally:
            self._library.on_call = None
        self._rows.computed[-1] = 0
        token_ids = torch.empty(size, dtype=torch.int64)
        choice = self._library.choice(logits, token_ids, rows, self._rows.tokens, self._rows.lens)
        calls = (*(call for call in noted.calls if isinstance(call, Call)), choice)
        for call in calls:
            call.check_size(size)
        steps, choosing_steps = self._merged(noted.calls), self._merged([*noted.calls, choice])
        return _Program(rows, steps, choosing_steps, calls, logits, token_ids, [batch, noted.kept], size)

    def _batch(self, rows: torch.Tensor) -> Batch:
        """One token of each row; gathering it is a job like others."""
        size, mine = len(rows), self._rows
        starts = torch.arange(size + 1, dtype=torch.int32)
        ids, positions, slots, kv_lens = self._library.gather(
            rows, starts, size, mine.computed, mine.tokens, mine.blocks, mine.block_size, advance=True
        )
        batch = Batch(
            input_ids=ids,
            positions=positions,
            slots=slots,
            rows=rows,
            query_starts=starts,
            kv_lens=kv_lens,
            block_tables=mine.blocks,
            logits_index=torch.arange(size),
            kv=self._kv,
            block_size=mine.block_size,
            counts=(1,) * size,
            kv_bounds=(1,) * size,
        )
        return batch.planned(self._backend.plan(batch))

    def _merged(self, calls: list[Call | Callable[[], None]]) -> tuple[Callable[[], None], ...]:
        """C++ jobs that follow one another become one call."""
        steps: list[Callable[[], None]] = []
        run: list[Call] = []
        for call in [*calls, None]:
            if isinstance(call, Call):
                run.append(call)
                continue
            if run:
                steps.append(self._library.sequence(run))
                run = []
            if call is not None:
                steps.append(call)
        return tuple(steps)


class _Notes(TorchDispatchMode):
    """Every operation of torch, to be repeated into the same outputs; views and empty buffers are only kept alive."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; what torch does for modes that might be is 1.2 s of imports at the first step."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call | Callable[[], None]] = []
        self.kept: list[Any] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.kept.append((args, kwargs, out))
        if not (function.is_view and _shares(out, args)) and not function.name().startswith("aten::empty"):
            self.calls.append(_repeat(function, args, kwargs or {}, out))
        return out


def _shares(out: Any, args: tuple[Any, ...]) -> bool:
    """Whether it is in fact a view: `to` may be one and may be a copy."""
    first = out[0] if isinstance(out, tuple | list) else out
    pointer = first.untyped_storage().data_ptr()
    return any(isinstance(arg, torch.Tensor) and arg.untyped_storage().data_ptr() == pointer for arg in args)


def _repeat(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Callable[[], None]:
    outs = out if isinstance(out, tuple | list) else (out,)

    def again() -> None:
        new = function(*args, **kwargs)
        for old, fresh in zip(outs, new if isinstance(new, tuple | list) else (new,), strict=True):
            if fresh is not old:
                old.copy_(fresh)

    return again
