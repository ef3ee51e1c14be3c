"""What a request says about single tokens: a bias, the only ones allowed, and words that must not be said."""

from __future__ import annotations

import numpy as np
import torch

from quire.messages import NewRow
from quire.worker.sampling.protocol import SamplingBatch, Stage
from quire.worker.transfer import upload


class AllowedTokens(Stage):
    """Forbids all tokens but a row's own list: one mask [vocab] for each row that has one."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._forbidden: dict[int, torch.Tensor] = {}

    def wants(self, new: NewRow) -> bool:
        """Rows with a list."""
        return new.params.allowed_token_ids is not None

    def start(self, new: NewRow) -> None:
        """Make the mask."""
        forbidden = np.ones(self._vocab_size, dtype=bool)
        forbidden[new.params.allowed_token_ids] = False
        self._forbidden[new.row] = upload(torch.from_numpy(forbidden), self._device)

    def clear(self, row: int) -> None:
        """Everything is allowed."""
        self._forbidden.pop(row, None)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """-inf wherever a row's mask says so."""
        for sample, row in enumerate(batch.row_list):
            if (forbidden := self._forbidden.get(row)) is not None:
                logits[sample].masked_fill_(forbidden, float("-inf"))
        return logits


class TokenBias(Stage):
    """Adds a row's numbers to the logits of its tokens."""

    def __init__(self) -> None:
        self._tokens: dict[int, np.ndarray] = {}
        self._values: dict[int, np.ndarray] = {}

    def wants(self, new: NewRow) -> bool:
        """Rows with a bias."""
        return bool(new.params.logit_bias)

    def start(self, new: NewRow) -> None:
        """Remember tokens and numbers."""
        bias = new.params.logit_bias
        self._tokens[new.row] = np.fromiter(bias.keys(), np.int64, len(bias))
        self._values[new.row] = np.fromiter(bias.values(), np.float32, len(bias))

    def clear(self, row: int) -> None:
        """No bias."""
        self._tokens.pop(row, None)
        self._values.pop(row, None)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """One scattered sum; the tokens of a row are distinct."""
        found = [(sample, row) for sample, row in enumerate(batch.row_list) if row in self._tokens]
        samples = np.repeat([sample for sample, _ in found], [len(self._tokens[row]) for _, row in found])
        tokens = np.concatenate([self._tokens[row] for _, row in found])
        values = np.concatenate([self._values[row] for _, row in found])
        place = upload(torch.from_numpy(np.stack([samples, tokens])), logits.device)
        logits[place[0], place[1]] += upload(torch.from_numpy(values), logits.device)
        return logits


class BadWords(Stage):
    """Forbids the last token of a word where its first ones have just been generated.

        word   | a b | c |       c is forbidden when the output ends with a b; a word of one token always

    The host need not know the output for that: it is compared on the device, in the rows' own table of tokens.
    """

    def __init__(self) -> None:
        self._words: dict[int, tuple[int, list[list[int]]]] = {}

    def wants(self, new: NewRow) -> bool:
        """Rows with bad words."""
        return bool(new.params.bad_words_token_ids)

    def start(self, new: NewRow) -> None:
        """Remember them, and where the output begins."""
        self._words[new.row] = (new.num_prompt, new.params.bad_words_token_ids)

    def clear(self, row: int) -> None:
        """Anything may be said."""
        self._words.pop(row, None)

    def apply(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """All words of all rows at once, their first tokens aligned to the right."""
        entries = [
            (sample, self._words[row][0], word)
            for sample, row in enumerate(batch.row_list)
            if row in self._words
            for word in self._words[row][1]
        ]
        longest = max(len(word) for _, _, word in entries) - 1
        host = np.full((len(entries), longest + 4), -1, dtype=np.int64)  # sample, num_prompt, last, length, first ones
        for line, (sample, num_prompt, word) in enumerate(entries):
            host[line, :4] = sample, num_prompt, word[-1], len(word) - 1
            host[line, host.shape[1] - len(word) + 1 :] = word[:-1]
        table = upload(torch.from_numpy(host), logits.device)
        sample, num_prompt, last, length = table[:, :4].unbind(1)
        end = batch.positions[sample]
        hit = end - length >= num_prompt
        if longest:
            back = torch.arange(-longest, 0, device=logits.device)
            said = batch.tokens[batch.rows[sample][:, None], (end[:, None] + back).clamp(min=0)]
            hit &= ((said == table[:, 4:]) | (back < -length[:, None])).all(dim=1)
        penalty = torch.where(hit, float("-inf"), 0.0)
        return logits.index_put_((sample, last), penalty, accumulate=True)
