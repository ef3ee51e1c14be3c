"""A bound on the tokens that a model may think: at the bound its closing tag is the only thing it can say.

    position   num_prompt ... begin | begin + 0 ... budget - 1 | budget ... budget + len(end) - 1 | answer
               what opens thoughts    thoughts, any tokens       the closing tag, one token each

All of it is followed on the device: whether the thoughts have ended is known there one step before the host knows.
"""

from __future__ import annotations

import torch

from quire.messages import NewRow, unpack_ids
from quire.params import ThinkingLimit
from quire.worker.sampling.protocol import SamplingBatch, Stage
from quire.worker.transfer import upload

MAX_GAP = 4
"""Tokens that may stand before what opens the thoughts: white space."""
NEVER = 1 << 40
"""A position that no token has: of thoughts that have not begun, or have ended."""


class ThinkingBudget(Stage):
    """Owns where the thoughts of each row began.

    Args:
        num_rows: most requests that run at once.
        device: of the logits.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._device = device
        self._begin = torch.full((num_rows,), NEVER, dtype=torch.int64, device=device)
        self._limits: dict[int, tuple[ThinkingLimit, int]] = {}

    def wants(self, new: NewRow) -> bool:
        """Rows with a bound whose thoughts have not ended yet."""
        limit = new.params.thinking_limit
        return limit is not None and _begin(new, limit) is not None

    def start(self, new: NewRow) -> None:
        """Remember the bound, and what the row brings of its thoughts."""
        limit = new.params.thinking_limit
        assert limit is not None
        begin = _begin(new, limit)
        assert begin is not None
        self._limits[new.row] = (limit, new.num_prompt)
        self._begin[new.row] = begin

    def clear(self, row: int) -> None:
        """No bound."""
        self._limits.pop(row, None)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Where the bound is reached, all but the next token of the closing tag is -inf."""
        samples, begins, positions, own = self._of(batch)
        budgets = upload(torch.tensor([limit.budget for limit, _ in own]), self._device)
        lengths = upload(torch.tensor([len(limit.end) for limit, _ in own]), self._device)
        ends = self._padded([limit.end for limit, _ in own])
        place = positions - begins - budgets
        forced = (place >= 0) & (place < lengths)
        token = ends.gather(1, place.clamp(0, ends.shape[1] - 1)[:, None])
        lines = logits[samples].masked_fill_(forced[:, None], float("-inf"))
        lines.scatter_(1, token, lines.gather(1, token).masked_fill_(forced[:, None], 0.0))
        logits[samples] = lines
        return logits

    def observe(self, batch: SamplingBatch, token_ids: torch.Tensor) -> None:
        """Thoughts begin with an opener near the start of the output, and end with their closing tag."""
        samples, begins, positions, own = self._of(batch)
        rows, new = batch.rows[samples], token_ids[samples]
        openers = self._padded([limit.openers for limit, _ in own])
        first = upload(torch.tensor([num_prompt + MAX_GAP for _, num_prompt in own]), self._device)
        opens = (openers == new[:, None]).any(1) & (begins == NEVER) & (positions <= first)
        ends = self._padded([limit.end[::-1] for limit, _ in own])  # [own, length], the last token first
        back = torch.arange(ends.shape[1], device=self._device)
        places = positions[:, None] - back  # of the tokens that end with the new one
        said = batch.tokens[rows[:, None], places.clamp(0)].long()
        said[:, 0] = new
        matches = (said == ends) | (ends < 0)
        closes = (begins < NEVER) & (matches & ((places >= begins[:, None]) | (ends < 0))).all(1)
        begins = torch.where(opens, positions + 1, begins)
        self._begin[rows] = torch.where(closes, NEVER + 1, begins)  # not NEVER: they do not begin again

    def _of(
        self, batch: SamplingBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[ThinkingLimit, int]]]:
        """The samples with a bound: their indices, beginnings, positions, and bounds."""
        found = [(i, self._limits[row]) for i, row in enumerate(batch.row_list) if row in self._limits]
        samples = upload(torch.tensor([i for i, _ in found]), self._device)
        return samples, self._begin[batch.rows[samples]], batch.positions[samples], [own for _, own in found]

    def _padded(self, lists: list[list[int]]) -> torch.Tensor:
        """[lists, longest] int64, -1 behind each."""
        width = max(1, *map(len, lists))
        return upload(torch.tensor([[*one, *[-1] * (width - len(one))] for one in lists]), self._device)


def _begin(new: NewRow, limit: ThinkingLimit) -> int | None:
    """Where the thoughts of a row begin; NEVER if they have not begun, None if they have ended, or never will begin."""
    output = unpack_ids(new.tokens).tolist()[new.num_prompt :]
    begin = 0 if limit.inside else None
    if begin is None:
        begin = next((i + 1 for i, token in enumerate(output[: MAX_GAP + 1]) if token in limit.openers), None)
        if begin is None:
            return NEVER if len(output) <= MAX_GAP else None
    length = len(limit.end)
    if any(output[i : i + length] == limit.end for i in range(begin, len(output) - length + 1)):
        return None
    return new.num_prompt + begin
