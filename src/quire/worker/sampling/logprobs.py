"""Log-probabilities of the chosen and of other tokens, the most likely ones or listed ones, from the raw logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from quire.messages import NewRow, TokenLogprobs
from quire.worker.transfer import upload


class Wanted(NamedTuple):
    """One line of log-probabilities.

    Attributes:
        sample: whose logits.
        most: how many tokens beside the chosen one.
        listed: these ones; empty: the most likely.
    """

    sample: int
    most: int
    listed: tuple[int, ...] = ()


class LogprobWishes:
    """Owns which rows want log-probabilities of what they sample.

    Args:
        num_rows: most requests that run at once.
        vocab_size: columns of the logits.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._most = np.full(num_rows, -1)
        self._listed: dict[int, tuple[int, ...]] = {}

    def start_row(self, new: NewRow) -> None:
        """A request takes a row."""
        most, listed = new.params.logprobs, tuple(new.params.logprob_token_ids or ())
        self._listed.pop(new.row, None)
        if listed:
            self._listed[new.row] = listed
            most = len(listed)
        self._most[new.row] = -1 if most is None else self._vocab_size if most == -1 else most

    def any(self, rows: list[int]) -> bool:
        """Whether one of these rows wants them."""
        return bool((self._most[rows] >= 0).any())

    def of(self, rows: list[int]) -> tuple[Wanted, ...]:
        """The lines that these rows want; their samples are places in this list."""
        found = enumerate(zip(rows, self._most[rows].tolist(), strict=True))
        return tuple(Wanted(i, most, self._listed.get(row, ())) for i, (row, most) in found if most >= 0)


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Column 0 is the chosen token, the rest the others in order.

    Attributes:
        wanted: what each line is.
        token_ids: [lines, 1 + most] int64.
        logprobs: [lines, 1 + most] float32.
        ranks: [lines] int64, of the chosen token; 1 is the most likely.
    """

    wanted: tuple[Wanted, ...]
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor

    def to_messages(self) -> dict[int, TokenLogprobs]:
        """By sample index, each cut to what it asked for. Call it on host tensors."""
        ids, logprobs, ranks = self.token_ids.tolist(), self.logprobs.tolist(), self.ranks.tolist()
        return {
            sample: TokenLogprobs(ids[line][: 1 + most], logprobs[line][: 1 + most], ranks[line])
            for line, (sample, most, _) in enumerate(self.wanted)
        }


def copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that will be on the host once the device is there."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def to_host(found: LogprobTensors) -> LogprobTensors:
    """The same, of all its tensors."""
    return replace(
        found,
        token_ids=copy_to_host(found.token_ids),
        logprobs=copy_to_host(found.logprobs),
        ranks=copy_to_host(found.ranks),
    )


def gather_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, wanted: tuple[Wanted, ...]) -> LogprobTensors:
    """For raw logits [samples, vocab] and chosen tokens [samples], the lines that `wanted` asks for."""
    lines = upload(torch.tensor([one.sample for one in wanted]), logits.device)
    values, chosen = logits[lines].float(), token_ids[lines, None]
    log_mass = values.logsumexp(dim=1, keepdim=True)
    of_chosen = values.gather(1, chosen)
    others, of_others = beside_chosen(values, wanted)
    return LogprobTensors(
        wanted,
        torch.cat([chosen, others], dim=1),
        torch.cat([of_chosen, of_others], dim=1) - log_mass,
        (values > of_chosen).sum(dim=1) + 1,
    )


def beside_chosen(values: torch.Tensor, wanted: Sequence[Wanted]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [lines, most] and logits [lines, most] of the others. values: [lines, vocab]."""
    listed = [(line, one.listed) for line, one in enumerate(wanted) if one.listed]
    most_likely = max((one.most for one in wanted if not one.listed), default=0)
    top = values.topk(most_likely, dim=1)
    if not listed:
        return top.indices, top.values
    width = max(one.most for one in wanted)
    ids = torch.zeros(len(wanted), width, dtype=torch.int64, device=values.device)
    ids[:, :most_likely] = top.indices
    padded = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for _, tokens in listed])
    ids[upload(torch.tensor([line for line, _ in listed]), values.device)] = upload(padded, values.device)
    return ids, values.gather(1, ids)
