"""Runner: a plan becomes a forward pass and a sampling pass. Owns rows, sampler and the logits in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from quire.messages import NewRow, StepPlan, StepResult
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.inputs import build_batch
from quire.worker.kernels.protocol import Kernels
from quire.worker.pictures import Pictures
from quire.worker.rows import Rows, to_device
from quire.worker.sampling.logprobs import LogprobTensors, Wanted, copy_to_host, to_host
from quire.worker.sampling.prompt import PromptScorer, Scored
from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.sampling.sampler import Sampled


class Pending(Protocol):
    """Tokens on their way to the host."""

    def wait(self) -> StepResult:
        """Block until they are there."""


class RowSampler(Protocol):
    """Logits to tokens: `sampling.sampler.Sampler` or its fused twin."""

    def start_row(self, new: NewRow) -> None:
        """A request takes a row."""

    def __call__(self, raw_logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """One token per line of raw_logits [samples, vocab]."""

    def gather_logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, wanted: tuple[Wanted, ...]
    ) -> LogprobTensors:
        """As `logprobs.gather_logprobs`."""


class Graphs(Protocol):
    """Captured steps of one shape: `graphs.StepGraphs`."""

    def takes(self, plan: StepPlan) -> bool:
        """Whether a graph can run this step."""

    def launch(self, plan: StepPlan) -> Any:
        """Run it: what waits for its tokens, or its logits where they are still to be sampled, as with masks."""

    def capture_next(self) -> bool:
        """Use spare time for a graph that is missing; whether there was one."""

    def needed_bytes(self) -> tuple[int, int]:
        """Device memory that all graphs may take: torch's, and the driver's."""

    def rehearsals(self) -> list[Callable[[], object]]:
        """Steps that launch what the graphs will hold."""

    def rehearse(self) -> None:
        """Run them."""

    def forget_smallest(self) -> None:
        """Another kernel is better for steps of one row: capture them anew."""


class Runner:
    """Runs steps, in the order in which they were planned.

    Args:
        model: `forward(batch) -> hidden`, `logits(hidden)`.
        backend: the attention that the model was built with.
        kernels: what gathers the inputs.
        rows: the tables.
        kv: one tensor per layer.
        sampler: logits to tokens.
        scorer: log-probabilities of prompts; a step that has any runs eagerly.
        graphs: shapes of step that are captured, the first that takes a step runs it; empty where none are.
        pictures: of a model that takes any; a step that has some runs eagerly.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: AttentionBackend,
        kernels: Kernels,
        rows: Rows,
        kv: tuple[torch.Tensor, ...],
        sampler: RowSampler,
        scorer: PromptScorer,
        graphs: tuple[Graphs, ...] = (),
        pictures: Pictures | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._kernels = kernels
        self._rows = rows
        self._kv = kv
        self._sampler = sampler
        self._scorer = scorer
        self.graphs = graphs
        self._pictures = pictures
        self._logits: torch.Tensor | None = None
        self._scored: Scored | None = None
        self._pending: Pending | None = None

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Apply the row changes and run the model. A captured step may sample as well; others keep their logits."""
        self._start(plan)
        whole = self._scorer.wants(plan) or bool(plan.pictures)
        graphs = None if whole else next((graphs for graphs in self.graphs if graphs.takes(plan)), None)
        launched = self._eager(plan) if graphs is None else graphs.launch(plan)
        if launched is None or isinstance(launched, torch.Tensor):
            self._logits = launched
        else:
            self._pending = launched

    @torch.inference_mode()
    def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> Pending:
        """Choose the next tokens, write them into the rows, start their way to the host."""
        if self._pending is not None:
            assert not masks, "a step with masks must not be sampled with its forward"
            pending, self._pending = self._pending, None
            return pending
        scored, self._scored = self._scored, None
        if self._logits is None:
            return PendingSample(None, scored)
        row_list = tuple(plan.rows[index] for index in plan.samples)
        rows = to_device(row_list, self._logits.device)
        batch = SamplingBatch(rows, self._rows.lens[rows].long(), row_list, masks, self._rows.tokens)
        sampled = self._sampler(self._logits, batch)
        self._rows.append(rows, sampled.token_ids)
        self._logits = None
        return PendingSample(sampled, scored)

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Use spare time; whether there was anything to do."""
        if any(graphs.capture_next() for graphs in self.graphs):
            return True
        changed = self._kernels.measure_next()
        if changed:
            for graphs in self.graphs:
                graphs.forget_smallest()
        return changed is not None

    def forget(self) -> None:
        """A step failed half-way: nothing of it is left for the next one."""
        self._logits = self._scored = self._pending = None

    @torch.inference_mode()
    def compile_ahead(self, *plans: StepPlan) -> None:
        """Compile the kernels of these steps and of all graphs. What the rows and the cache hold is lost."""
        from quire.worker.kernels.ahead import compile_ahead

        eager = [partial(self._run_eagerly, plan) for plan in plans]
        compile_ahead([*eager, *(step for graphs in self.graphs for step in graphs.rehearsals())])

    def _run_eagerly(self, plan: StepPlan) -> None:
        self._start(plan)
        self._logits = self._eager(plan)
        self.sample(plan, {})

    def _start(self, plan: StepPlan) -> None:
        self._rows.start(plan.new_rows)
        for new in plan.new_rows:
            self._sampler.start_row(new)
            self._scorer.start_row(new)

    def _eager(self, plan: StepPlan) -> torch.Tensor | None:
        """Logits [samples, vocab] of any step, None if nothing samples."""
        self._rows.grow(plan.new_blocks)
        batch = build_batch(plan, self._rows, self._kv, self._kernels)
        for step in plan.pictures if self._pictures is not None else ():
            batch = self._pictures.merged(plan, step, batch)
        batch = batch.planned(self._backend.plan(batch))
        hidden = self._model(batch)  # [tokens, hidden]
        self._rows.computed[batch.rows] = batch.kv_lens
        if self._scorer.wants(plan):
            gather = self._sampler.gather_logprobs
            self._scored = self._scorer.score(plan, hidden, self._rows.tokens, self._model.logits, gather)
        if not plan.samples:
            return None
        return self._model.logits(hidden if len(plan.samples) == len(hidden) else hidden[batch.logits_index])


class PendingSample:
    """Sampled tokens, and log-probabilities of prompts, on their way to the host."""

    def __init__(self, sampled: Sampled | None, scored: Scored | None = None) -> None:
        self._event: torch.cuda.Event | None = None
        self._sampled, self._scored = sampled, scored
        some = sampled.token_ids if sampled is not None else scored.parts[0].token_ids if scored is not None else None
        if some is None or some.device.type == "cpu":
            return
        self._sampled = None if sampled is None else _sampled_to_host(sampled)
        self._scored = None if scored is None else scored.to_host()
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> StepResult:
        """Block until they are there."""
        if self._event is not None:
            self._event.synchronize()
        scored = self._scored.to_messages() if self._scored is not None else {}
        if self._sampled is None:
            return StepResult([], {}, scored)
        logprobs = self._sampled.logprobs
        return StepResult(self._sampled.token_ids.tolist(), logprobs.to_messages() if logprobs else {}, scored)


def _sampled_to_host(sampled: Sampled) -> Sampled:
    logprobs = None if sampled.logprobs is None else to_host(sampled.logprobs)
    return Sampled(copy_to_host(sampled.token_ids), logprobs)
