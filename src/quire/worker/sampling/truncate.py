"""Temperature, then min-p, top-k and top-p.

Top-p is nucleus sampling (Holtzman et al., arXiv:1904.09751): the smallest set of most likely tokens whose mass
reaches top_p, taken after top-k. Min-p (arXiv:2407.01082) drops tokens below min_p times the most likely one.
"""

from __future__ import annotations

import torch

from quire.messages import NewRow
from quire.worker.sampling.protocol import Column, SamplingBatch, Stage

WIDTHS = (64, 1024)
"""How many of the most likely tokens to look at before sorting all: on real text 64 nearly always hold top_p."""


class Temperature(Stage):
    """Divides the logits. Greedy rows keep theirs: their argmax does not care."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._temperature = Column(num_rows, 1.0, torch.float32, device)

    def wants(self, new: NewRow) -> bool:
        """Rows that sample at another temperature than 1."""
        return new.params.temperature not in (0.0, 1.0)

    def start(self, new: NewRow) -> None:
        """Remember it."""
        self._temperature.set(new.row, new.params.temperature)

    def clear(self, row: int) -> None:
        """1."""
        self._temperature.clear(row)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """One division."""
        return logits.div_(self._temperature.of(batch.rows)[:, None])


class MinP(Stage):
    """Drops tokens with p < min_p * max(p), which in logits is a distance of ln(min_p) from the largest."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._min_p = Column(num_rows, 0.0, torch.float32, device)

    def wants(self, new: NewRow) -> bool:
        """Rows that sample with it."""
        return new.params.min_p > 0 and not new.params.greedy

    def start(self, new: NewRow) -> None:
        """Remember it."""
        self._min_p.set(new.row, new.params.min_p)

    def clear(self, row: int) -> None:
        """0."""
        self._min_p.clear(row)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """ln(0) = -inf keeps every token of rows without min_p."""
        floor = logits.amax(dim=1, keepdim=True) + self._min_p.of(batch.rows).log()[:, None]
        return logits.masked_fill_(logits < floor, float("-inf"))


class TopKTopP(Stage):
    """Keeps the tokens whose logit reaches a threshold found among the most likely ones."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab = vocab_size
        self._top_k = Column(num_rows, vocab_size, torch.int64, device)
        self._top_p = Column(num_rows, 1.0, torch.float32, device)

    def wants(self, new: NewRow) -> bool:
        """Rows that sample with either."""
        return (new.params.top_k > 0 or new.params.top_p < 1) and not new.params.greedy

    def start(self, new: NewRow) -> None:
        """Remember both."""
        k = new.params.top_k
        self._top_k.set(new.row, min(k, self._vocab) if k > 0 else self._vocab)
        self._top_p.set(new.row, new.params.top_p)

    def clear(self, row: int) -> None:
        """Keep all."""
        self._top_k.clear(row)
        self._top_p.clear(row)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Mask everything below each row's threshold."""
        top_k, top_p = self._top_k.of(batch.rows), self._top_p.of(batch.rows)
        threshold = self._threshold(logits, top_k, top_p)
        return logits.masked_fill_(logits < threshold[:, None], float("-inf"))

    def _threshold(self, logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
        """The smallest logit each row keeps; -inf for rows that keep all.

        On a CPU the width grows until it is enough; a GPU cannot be asked without waiting, so there it is all at once.
        """
        mass = logits.logsumexp(dim=1)
        for width in WIDTHS if logits.device.type == "cpu" else ():
            if width < self._vocab:
                threshold, enough = self._nucleus(logits.topk(width, dim=1).values, mass, top_k, top_p)
                if bool(enough.all()):
                    return threshold
        return self._nucleus(logits.sort(dim=1, descending=True).values, mass, top_k, top_p)[0]

    def _nucleus(
        self, top: torch.Tensor, mass: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(threshold, whether it is certain) per row, from its largest logits `top` [rows, width] in falling order.

        mass: log of the mass of all tokens; where top_k cuts, the mass of the kept ones takes its place.
        """
        width = top.shape[1]
        rank = torch.arange(width, device=top.device)
        no_k = top_k >= self._vocab
        kept_mass = top.masked_fill(rank >= top_k[:, None], float("-inf")).logsumexp(dim=1)
        probability = (top - torch.where(no_k, mass, kept_mass)[:, None]).exp()
        before = probability.cumsum(dim=1) - probability
        keep = (rank < top_k[:, None]) & ((before < top_p[:, None]) | (top_p >= 1)[:, None])
        num_kept = keep.sum(dim=1).clamp(min=1)
        keeps_all = no_k & (top_p >= 1)
        threshold = top.gather(1, num_kept[:, None] - 1)[:, 0].masked_fill(keeps_all, float("-inf"))
        return threshold, (top_k <= width) | (no_k & (num_kept < width)) | keeps_all
