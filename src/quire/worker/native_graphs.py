"""Captured decode steps on a CPU: what a step launches is written down once per size and repeated by one call.

Launching a layer from Python takes about 80 us, a tenth of a small model's step. The first step of a size runs as usual
while every C++ job and torch operation is noted; later ones copy their inputs into the same buffers and repeat:

    rows of a step   | r3 r0 r7 | null |       a size that there is, padded with the null row, which has block 0
    program          torch: embedding, cos, sin | C++: norm, qkv, store, attend, ... head

That is what CUDA graphs are on a GPU, with the same demand on models: nothing may depend on values, only on shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quire.messages import StepPlan
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.batch import Batch
from quire.worker.inputs import build_batch
from quire.worker.kernels.native import Call, NativeLibrary
from quire.worker.kernels.protocol import Kernels
from quire.worker.rows import Rows

SIZES = (1, 2, 4, 8, 16)
"""Rows; more of them take long enough to hide the launching, and buffers for all layers are kept."""


@dataclass(frozen=True, slots=True)
class _Program:
    """Steps to repeat, in order; `kept` holds every buffer that they point to."""

    batch: Batch
    steps: tuple[Callable[[], None], ...]
    logits: torch.Tensor  # [size, vocab]
    kept: list[Any]


class NativeGraphs:
    """Steps of one token per row, all of them sampled. See `runner.Graphs`.

    Args:
        model, backend, kernels, rows, kv: as for the runner.
        library: whose calls are noted.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: AttentionBackend,
        kernels: Kernels,
        rows: Rows,
        kv: tuple[torch.Tensor, ...],
        library: NativeLibrary,
    ) -> None:
        self._model, self._backend, self._kernels = model, backend, kernels
        self._rows, self._kv, self._library = rows, kv, library
        self._programs: dict[int, _Program] = {}

    def takes(self, plan: StepPlan) -> bool:
        """Decodes of few rows."""
        num = len(plan.rows)
        return num <= SIZES[-1] and max(plan.counts) == 1 and len(plan.samples) == num

    def launch(self, plan: StepPlan) -> torch.Tensor:
        """Logits [rows, vocab], in a buffer that the next step of the size overwrites."""
        self._rows.grow(plan.new_blocks)
        batch = build_batch(plan, self._rows, self._kv, self._kernels)
        num = len(plan.rows)
        size = next(size for size in SIZES if size >= num)
        program = self._programs.get(size)
        if program is None:
            program = self._programs[size] = self._capture(batch, size)
        else:
            _feed(program.batch, batch, num)
            for step in program.steps:
                step()
        self._rows.computed[batch.rows] = batch.kv_lens
        return program.logits[:num]

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

    def _capture(self, batch: Batch, size: int) -> _Program:
        """Run a step in buffers of this size, and note how."""
        padded = self._padded(batch, size)
        _feed(padded, batch, len(batch.counts))
        padded = padded.planned(self._backend.plan(padded))
        noted = _Notes()
        self._library.on_call = noted.calls.append
        try:
            with noted:
                logits = self._model.logits(self._model(padded))
        finally:
            self._library.on_call = None
        noted.kept.append(noted.calls)
        return _Program(padded, self._merged(noted.calls), logits, noted.kept)

    def _padded(self, batch: Batch, size: int) -> Batch:
        """A batch of null rows."""

        def full(like: torch.Tensor, value: int) -> torch.Tensor:
            return torch.full((size,), value, dtype=like.dtype)

        return replace(
            batch,
            input_ids=full(batch.input_ids, 0),
            positions=full(batch.positions, 0),
            slots=full(batch.slots, 0),
            rows=full(batch.rows, self._rows.num_rows),
            query_starts=torch.arange(size + 1, dtype=torch.int32),
            kv_lens=full(batch.kv_lens, 1),
            logits_index=torch.arange(size),
            counts=(1,) * size,
            kv_bounds=(1,) * size,
        )

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


def _feed(into: Batch, batch: Batch, num: int) -> None:
    """The inputs of a step into the buffers of its size; null rows behind them."""
    for name in ("input_ids", "positions", "slots", "rows", "kv_lens"):
        buffer: torch.Tensor = getattr(into, name)
        buffer[:num] = getattr(batch, name)
    if num < len(into.rows):
        into.input_ids[num:], into.positions[num:], into.slots[num:] = 0, 0, 0
        into.rows[num:], into.kv_lens[num:] = len(into.block_tables) - 1, 1


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
