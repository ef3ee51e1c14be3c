"""Runner: a plan becomes a forward pass and a sampling pass. Owns rows, sampler and the logits in between."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from quire.messages import StepPlan, StepResult
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.inputs import build_batch
from quire.worker.rows import Rows, to_device
from quire.worker.sampling.protocol import SamplingBatch
from quire.worker.sampling.sampler import Sampled, Sampler


class Runner:
    """Runs steps, in the order in which they were planned.

    Args:
        model: `forward(batch) -> hidden`, `logits(hidden)`.
        backend: the attention that the model was built with.
        rows: the tables.
        kv: one tensor per layer.
        sampler: logits to tokens.
    """

    def __init__(
        self, model: nn.Module, backend: AttentionBackend, rows: Rows, kv: tuple[torch.Tensor, ...], sampler: Sampler
    ) -> None:
        self._model = model
        self._backend = backend
        self._rows = rows
        self._kv = kv
        self._sampler = sampler
        self._logits: torch.Tensor | None = None

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Apply the row changes, run the model, keep the logits of the rows that sample."""
        self._rows.apply(plan.new_rows, plan.new_blocks)
        for new in plan.new_rows:
            self._sampler.start_row(new)
        batch = build_batch(plan, self._rows, self._kv)
        batch = replace(batch, attention_plan=self._backend.plan(batch))
        hidden = self._model(batch)  # [tokens, hidden]
        self._rows.computed[batch.rows] = batch.kv_lens
        self._logits = self._model.logits(hidden[batch.logits_index]) if plan.samples else None

    @torch.inference_mode()
    def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> PendingSample:
        """Choose the next tokens, write them into the rows, start their way to the host."""
        if self._logits is None:
            return PendingSample(None)
        row_list = tuple(plan.rows[index] for index in plan.samples)
        rows = to_device(row_list, self._logits.device)
        batch = SamplingBatch(rows, self._rows.lens[rows].long(), row_list, masks)
        sampled = self._sampler(self._logits, batch)
        self._rows.append(rows, sampled.token_ids)
        self._logits = None
        return PendingSample(sampled)


class PendingSample:
    """Sampled tokens on their way to the host."""

    def __init__(self, sampled: Sampled | None) -> None:
        self._event: torch.cuda.Event | None = None
        self._sampled = sampled
        if sampled is None or sampled.token_ids.device.type == "cpu":
            return
        self._sampled = _to_host(sampled)
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> StepResult:
        """Block until they are there."""
        if self._event is not None:
            self._event.synchronize()
        if self._sampled is None:
            return StepResult([])
        logprobs = self._sampled.logprobs
        return StepResult(self._sampled.token_ids.tolist(), logprobs.to_messages() if logprobs else {})


def _to_host(sampled: Sampled) -> Sampled:
    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    logprobs = sampled.logprobs
    if logprobs is not None:
        logprobs = replace(
            logprobs,
            token_ids=copy(logprobs.token_ids),
            logprobs=copy(logprobs.logprobs),
            ranks=copy(logprobs.ranks),
        )
    return Sampled(copy(sampled.token_ids), logprobs)
