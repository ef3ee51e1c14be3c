"""Log-probabilities of prompts: how likely each of their tokens was after those before it.

    position run    start   start + 1   ...   end - 1            positions of one row in this step
    token scored    start + 1   ...           end                none beyond the prompt

The hidden states of all positions are there after any forward, so this only multiplies them by the head, some lines
at a time: a long prompt's logits would not fit next to the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from quire.messages import NewRow, StepPlan, TokenLogprobs
from quire.worker.sampling.logprobs import LogprobTensors, Wanted, to_host
from quire.worker.transfer import upload

LINES = 256
"""Positions whose logits are made at a time."""

GatherLogprobs = Callable[[torch.Tensor, torch.Tensor, tuple[Wanted, ...]], LogprobTensors]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a step found, on its way to the host.

    Attributes:
        counts: (index into the plan's rows, how many lines it has), in the order of the lines.
        parts: up to LINES lines each.
    """

    counts: tuple[tuple[int, int], ...]
    parts: tuple[LogprobTensors, ...]

    def to_host(self) -> Scored:
        """A copy that will be on the host once the device is there."""
        return Scored(self.counts, tuple(to_host(part) for part in self.parts))

    def to_messages(self) -> dict[int, list[TokenLogprobs]]:
        """By index into the plan's rows. Call it on host tensors."""
        lines = iter([line for part in self.parts for line in part.to_messages().values()])
        return {index: [next(lines) for _ in range(count)] for index, count in self.counts}


class PromptScorer:
    """Owns which rows want their prompt scored.

    Args:
        num_rows: most requests that run at once.
        vocab_size: columns of the logits.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._most = np.full(num_rows, -1)
        self._num_prompt = np.zeros(num_rows, dtype=np.int64)
        self._unfinished: set[int] = set()

    def start_row(self, new: NewRow) -> None:
        """A request takes a row."""
        most = new.params.prompt_logprobs
        self._most[new.row] = -1 if most is None else self._vocab_size if most == -1 else most
        self._num_prompt[new.row] = new.num_prompt
        self._unfinished.discard(new.row)
        if most is not None and new.num_computed < new.num_prompt - 1:
            self._unfinished.add(new.row)

    def wants(self, plan: StepPlan) -> bool:
        """Whether the step runs a position of a prompt that is to be scored."""
        return bool(self._unfinished) and not self._unfinished.isdisjoint(plan.rows)

    def score(
        self,
        plan: StepPlan,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        gather: GatherLogprobs,
    ) -> Scored:
        """Log-probabilities of all that the step can score.

        Args:
            hidden: [tokens of the step, hidden size].
            tokens: [rows, length]; the rows' table.
            head: hidden states to logits [lines, vocab].
            gather: logits [lines, vocab], tokens [lines], wanted → log-probabilities.
        """
        counts, lines, places, wanted = self._lines(plan, tokens.shape[1])
        device = hidden.device
        line_of, place_of = (upload(torch.from_numpy(np.concatenate(part)), device) for part in (lines, places))
        targets = tokens.view(-1)[place_of].long()
        parts = []
        for begin in range(0, len(wanted), LINES):
            logits = head(hidden[line_of[begin : begin + LINES]])
            some = tuple(Wanted(line, most) for line, most in enumerate(wanted[begin : begin + LINES]))
            parts.append(gather(logits, targets[begin : begin + LINES], some))
        return Scored(tuple(counts), tuple(parts))

    def _lines(
        self, plan: StepPlan, width: int
    ) -> tuple[list[tuple[int, int]], list[np.ndarray], list[np.ndarray], list[int]]:
        """Counts by row, lines of the hidden states, places in the table of tokens, how many most likely ones."""
        counts, lines, places, wanted = [], [], [], []
        offset = 0
        for index, (row, start, count) in enumerate(zip(plan.rows, plan.starts, plan.counts, strict=True)):
            scored = min(start + count, int(self._num_prompt[row]) - 1) - start
            if row in self._unfinished:
                counts.append((index, scored))
                lines.append(np.arange(offset, offset + scored))
                places.append(np.arange(start + 1, start + 1 + scored) + row * width)
                wanted += [int(self._most[row])] * scored
                if start + count >= self._num_prompt[row] - 1:
                    self._unfinished.discard(row)
            offset += count
        return counts, lines, places, wanted
