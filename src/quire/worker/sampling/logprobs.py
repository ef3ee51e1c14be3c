"""Log-probabilities of the chosen and of the most likely tokens, from the raw logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from quire.messages import TokenLogprobs
from quire.worker.transfer import upload


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Column 0 is the chosen token, the rest the most likely ones in order.

    Attributes:
        wanted: (sample index, how many of the most likely) for each line.
        token_ids: [lines, 1 + most] int64.
        logprobs: [lines, 1 + most] float32.
        ranks: [lines] int64; 1 is the most likely.
    """

    wanted: tuple[tuple[int, int], ...]
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor

    def to_messages(self) -> dict[int, TokenLogprobs]:
        """By sample index, each cut to what it asked for. Call it on host tensors."""
        ids, logprobs, ranks = self.token_ids.tolist(), self.logprobs.tolist(), self.ranks.tolist()
        return {
            sample: TokenLogprobs(ids[line][: 1 + most], logprobs[line][: 1 + most], ranks[line])
            for line, (sample, most) in enumerate(self.wanted)
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


def gather_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, wanted: tuple[tuple[int, int], ...]
) -> LogprobTensors:
    """For raw logits [samples, vocab] and chosen tokens [samples], the lines that `wanted` asks for."""
    lines = upload(torch.tensor([sample for sample, _ in wanted]), logits.device)
    values, chosen = logits[lines].float(), token_ids[lines, None]
    log_mass = values.logsumexp(dim=1, keepdim=True)
    of_chosen = values.gather(1, chosen)
    top = values.topk(max(most for _, most in wanted), dim=1)
    return LogprobTensors(
        wanted,
        torch.cat([chosen, top.indices], dim=1),
        torch.cat([of_chosen, top.values], dim=1) - log_mass,
        (values > of_chosen).sum(dim=1) + 1,
    )
