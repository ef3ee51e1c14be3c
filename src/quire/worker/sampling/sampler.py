"""Sampler: owns the stages and knows which rows want which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.messages import NewRow
from quire.worker.kernels.plain import PlainKernels
from quire.worker.sampling.draw import draw, uniform
from quire.worker.sampling.logprobs import LogprobTensors, LogprobWishes, Wanted, gather_logprobs
from quire.worker.sampling.mask import apply_masks
from quire.worker.sampling.min_tokens import MinTokens
from quire.worker.sampling.penalties import Penalties
from quire.worker.sampling.protocol import Column, SamplingBatch, Stage
from quire.worker.sampling.thinking import ThinkingBudget
from quire.worker.sampling.truncate import MinP, Temperature, TopKTopP
from quire.worker.sampling.words import AllowedTokens, BadWords, TokenBias
from quire.worker.transfer import upload

PLAIN = PlainKernels()


@dataclass(frozen=True, slots=True)
class Sampled:
    """token_ids: [samples] int64."""

    token_ids: torch.Tensor
    logprobs: LogprobTensors | None


def word_stages(num_rows: int, vocab_size: int, device: torch.device) -> tuple[Stage, ...]:
    """Stages about single tokens: before all others, also before the GPU's fused kernel."""
    return (AllowedTokens(vocab_size, device), BadWords(), TokenBias(), ThinkingBudget(num_rows, device))


def default_stages(num_rows: int, vocab_size: int, device: torch.device) -> tuple[Stage, ...]:
    """All stages in the order in which they apply."""
    return (
        *word_stages(num_rows, vocab_size, device),
        MinTokens(num_rows, device),
        Penalties(num_rows, vocab_size, device),
        Temperature(num_rows, device),
        MinP(num_rows, device),
        TopKTopP(num_rows, vocab_size, device),
    )


class Sampler:
    """Logits in, tokens out.

    Args:
        num_rows: most requests that run at once.
        vocab_size: columns of the logits.
        stages: what may change logits before the draw.
        most_likely: logits [rows, vocab] to the index of the largest of each row.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        stages: tuple[Stage, ...] | None = None,
        most_likely: Callable[[torch.Tensor], torch.Tensor] = PLAIN.most_likely,
    ) -> None:
        self._stages = default_stages(num_rows, vocab_size, device) if stages is None else stages
        self._most_likely = most_likely
        self._active = np.zeros((num_rows, len(self._stages)), dtype=bool)
        self._random = np.zeros(num_rows, dtype=bool)
        self._wishes = LogprobWishes(num_rows, vocab_size)
        self._seeds = Column(num_rows, 0, torch.int64, device)

    def start_row(self, new: NewRow) -> None:
        """A request takes a row."""
        for index, stage in enumerate(self._stages):
            if stage.wants(new):
                stage.start(new)
                self._active[new.row, index] = True
            elif self._active[new.row, index]:
                stage.clear(new.row)
                self._active[new.row, index] = False
        params = new.params
        self._random[new.row] = not params.greedy
        self._seeds.set(new.row, params.seed or 0)
        self._wishes.start_row(new)

    def only_most_likely(self, rows: Sequence[int]) -> bool:
        """Whether these rows want the most likely token and nothing else."""
        index = list(rows)
        return not (self._random[index].any() or self._active[index].any() or self._wishes.any(index))

    def __call__(self, raw_logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Sample one token per row. raw_logits: [samples, vocab], left as they are."""
        rows = list(batch.row_list)
        random = self._random[rows]
        stages = [self._stages[index] for index in np.flatnonzero(self._active[rows].any(axis=0))]
        if stages or batch.masks or random.any():
            token_ids = self._choose(self._change(raw_logits, batch, stages), batch, random)
        else:
            token_ids = self._most_likely(raw_logits)
        for stage in stages:
            stage.observe(batch, token_ids)
        wanted = self._wishes.of(rows)
        return Sampled(token_ids, gather_logprobs(raw_logits, token_ids, wanted) if wanted else None)

    def gather_logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, wanted: tuple[Wanted, ...]
    ) -> LogprobTensors:
        """For any logits [lines, vocab] and tokens [lines]."""
        return gather_logprobs(logits, token_ids, wanted)

    def _change(self, raw_logits: torch.Tensor, batch: SamplingBatch, stages: list[Stage]) -> torch.Tensor:
        """A float32 copy that went through masks and stages."""
        logits = apply_masks(raw_logits.to(torch.float32, copy=True), batch)
        for stage in stages:
            logits = stage.apply(logits, batch)
        return logits

    def _choose(self, logits: torch.Tensor, batch: SamplingBatch, random: np.ndarray) -> torch.Tensor:
        """Greedy rows take the largest, random rows draw; neither costs anything if nobody wants it."""
        if not random.any():
            return self._most_likely(logits)
        drawn = draw(logits, uniform(self._seeds.of(batch.rows), batch.positions))
        if random.all():
            return drawn
        greedy = upload(torch.from_numpy(~random), logits.device)
        return torch.where(greedy, self._most_likely(logits), drawn)
