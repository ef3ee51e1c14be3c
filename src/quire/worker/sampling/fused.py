"""FusedSampler: the sampler of GPUs. Owns the rows' values and tokens seen, on the device, at fixed addresses.

    start_row ──► host lines ──► flush ──► table[row] ──► sample: one kernel, in a CUDA graph or not

It means the same as `Sampler`, its plain twin. What the kernel does not know is applied by stages before it, and
log-probabilities are taken after it: outside of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from quire.messages import NewRow
from quire.worker.kernels import sampling as kernels
from quire.worker.kernels import sampling_fused as fused
from quire.worker.sampling.logprobs import LogprobTensors, LogprobWishes, Wanted, beside_chosen
from quire.worker.sampling.mask import apply_masks
from quire.worker.sampling.prompt import LINES
from quire.worker.sampling.protocol import SamplingBatch, Stage
from quire.worker.sampling.sampler import Sampled
from quire.worker.transfer import upload

GREEDY, FUSED, ADJUSTED, EAGER = "greedy", "fused", "adjusted", "eager"
LOG2_E = math.log2(math.e)


class FusedSampler:
    """Logits in, tokens out.

    Args:
        num_rows: most requests that run at once. Line num_rows of the tables is the null row: greedy, never remembered.
        vocab_size: columns of the logits.
        device: where the tables live.
        stages: what else may change logits; applied before all that the kernel does.
        dtype: of logits.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        stages: tuple[Stage, ...] = (),
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.null_row = num_rows
        self._vocab_size = vocab_size
        self._device = device
        self._stages = stages
        self._active = np.zeros((num_rows + 1, len(self._stages)), dtype=bool)
        self._wishes = LogprobWishes(num_rows + 1, vocab_size)
        self._lines = np.zeros((num_rows + 1, fused.WIDTH), dtype=np.int32)
        self._lines[:] = _line(greedy=True)
        self._table = torch.from_numpy(self._lines.copy()).to(device)
        self._changed: set[int] = set()
        # Made now, though few need them: what comes late may find no room beside the KV cache.
        self._seen = torch.zeros(num_rows + 1, vocab_size, dtype=torch.int16, device=device)
        self._kept = torch.empty(num_rows + 1, vocab_size, dtype=dtype, device=device)
        self._new_seen: dict[int, NewRow] = {}
        most = max(LINES, 1 << num_rows.bit_length())
        self._places = torch.arange(most, dtype=torch.int32, device=device)
        self._scratch = kernels.Scratch(most, device)
        self._fused_scratch = fused.FusedScratch(most, device)

    def start_row(self, new: NewRow) -> None:
        """A request takes a row. The device learns of it at the next `flush`."""
        row = new.row
        for index, stage in enumerate(self._stages):
            if stage.wants(new):
                stage.start(new)
                self._active[row, index] = True
            elif self._active[row, index]:
                stage.clear(row)
                self._active[row, index] = False
        self._wishes.start_row(new)
        self._lines[row] = _line_of(new, self._vocab_size)
        self._changed.add(row)
        self._new_seen.pop(row, None)
        if self._lines[row, fused.FLAGS] & fused.ADJUSTED:
            self._new_seen[row] = new

    def variant(self, row_list: Sequence[int]) -> str:
        """Which `sample` these rows need: "greedy", "fused", "adjusted" or "eager", the one that no graph can hold.

        "adjusted" is for rows with penalties or stop tokens before `min_tokens`. Its graph also serves all that "fused"
        does, and that of "fused" all that "greedy" does.
        """
        rows = list(row_list)
        if self._active[rows].any() or self._wishes.any(rows):
            return EAGER
        return self._kernel(rows)

    def keep(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [n, vocab] of a captured step that is sampled later, at an address that all graphs share."""
        return self._kept[: len(logits)].copy_(logits)

    def flush(self) -> None:
        """Bring the tables up to date, without waiting. Not while a graph is captured."""
        if self._changed:
            rows = sorted(self._changed)
            lines = upload(torch.from_numpy(self._lines[rows]), self._device)
            self._table.index_copy_(0, upload(torch.tensor(rows), self._device), lines)
            self._changed.clear()
        if self._new_seen:
            self._upload_seen(list(self._new_seen.values()))
            self._new_seen.clear()

    def sample(self, variant: str, logits: torch.Tensor, rows: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        """Token ids [n] int64 by fixed launches, which a graph can hold; the null row's mean nothing.

        Args:
            variant: "greedy", "fused" or "adjusted".
            logits: [n, vocab], read only.
            rows: [n] int32 or int64; may name the null row.
            lens: [num_rows + 1] int32, each row's length: the new token's position.
        """
        assert variant != EAGER, "these rows need more than a kernel: call the sampler itself"
        return self._launch(variant, logits, rows, rows, lens)

    def __call__(self, raw_logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Sample one token per row, whatever the rows want. raw_logits: [samples, vocab], left as they are."""
        self.flush()
        rows = list(batch.row_list)
        stages = [self._stages[index] for index in np.flatnonzero(self._active[rows].any(axis=0))]
        variant, logits, masks = self._kernel(rows), raw_logits, None
        if stages:
            logits = apply_masks(raw_logits.to(torch.float32, copy=True), batch)
            for stage in stages:
                logits = stage.apply(logits, batch)
        elif batch.masks:
            variant = FUSED if variant == GREEDY else variant
            masks = self._upload_masks(batch)
        places, positions = self._places[: len(rows)], batch.positions.int()
        token_ids = self._launch(variant, logits, batch.rows.int(), places, positions, masks)
        for stage in stages:
            stage.observe(batch, token_ids)
        wanted = self._wishes.of(rows)
        return Sampled(token_ids, self.gather_logprobs(raw_logits, token_ids, wanted) if wanted else None)

    def _kernel(self, rows: list[int]) -> str:
        flags = int(np.bitwise_or.reduce(self._lines[rows, fused.FLAGS], initial=0))
        return ADJUSTED if flags & fused.ADJUSTED else FUSED if flags else GREEDY

    def _launch(
        self,
        variant: str,
        logits: torch.Tensor,
        rows: torch.Tensor,
        places: torch.Tensor,
        positions: torch.Tensor,
        masks: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        tokens = torch.empty(len(logits), dtype=torch.int64, device=self._device)
        if variant == GREEDY:
            return kernels.argmax(logits, self._scratch, tokens)
        seen = self._seen if variant == ADJUSTED else None
        scratch = self._fused_scratch
        return fused.sample(logits, rows, places, positions, self._table, scratch, tokens, seen=seen, masks=masks)

    def _upload_seen(self, new_rows: list[NewRow]) -> None:
        """Enter the tokens that rows bring, and their stop tokens."""
        table = self._seen
        flat, values = [], []
        for new in new_rows:
            tokens = np.frombuffer(new.tokens, dtype=np.int32)
            output, times = np.unique(tokens[new.num_prompt :], return_counts=True)
            prompt = np.unique(tokens[: new.num_prompt])
            entries = dict.fromkeys(prompt.tolist(), fused.IN_PROMPT)
            for token, count in zip(output.tolist(), times.tolist(), strict=True):
                entries[token] = entries.get(token, 0) + fused.GENERATED * min(count, fused.MAX_COUNT)
            if self._lines[new.row, fused.UNTIL]:
                for token in {token for token in new.stop_token_ids if token < self._vocab_size}:
                    entries[token] = entries.get(token, 0) + fused.STOP
            flat.append(np.fromiter(entries.keys(), np.int64, len(entries)) + new.row * self._vocab_size)
            values.append(np.fromiter(entries.values(), np.int16, len(entries)))
        rows = upload(torch.tensor([new.row for new in new_rows]), self._device)
        table.index_fill_(0, rows, 0)
        index = upload(torch.from_numpy(np.concatenate(flat)), self._device)
        table.view(-1).index_copy_(0, index, upload(torch.from_numpy(np.concatenate(values)), self._device))

    def _upload_masks(self, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(line of each sample [samples] int32, [lines, words] int32); line 0 allows everything."""
        words = np.full((1 + len(batch.masks), -(-self._vocab_size // 32)), -1, dtype=np.int32)
        lines = np.zeros(len(batch.row_list), dtype=np.int32)
        for line, (sample, mask) in enumerate(batch.masks.items(), start=1):
            bits = np.frombuffer(mask, dtype=np.uint8)[: words.shape[1] * 4]
            words[line].view(np.uint8)[: len(bits)] = bits
            lines[sample] = line
        return upload(torch.from_numpy(lines), self._device), upload(torch.from_numpy(words), self._device)

    def gather_logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, wanted: tuple[Wanted, ...]
    ) -> LogprobTensors:
        """As `gather_logprobs`, without a float32 copy of the logits."""
        lines = upload(torch.tensor([one.sample for one in wanted]), self._device)
        chosen, log_mass, ranks = kernels.logprobs(logits, lines, token_ids, self._scratch)
        others, of_others = beside_chosen(logits[lines], wanted)
        return LogprobTensors(
            wanted,
            torch.cat([token_ids[lines, None], others], dim=1),
            torch.cat([chosen[:, None], of_others.float() - log_mass[:, None]], dim=1),
            ranks,
        )


def _line(greedy: bool) -> np.ndarray:
    """A row's line without any wish."""
    line = np.zeros(fused.WIDTH, dtype=np.int32)
    values = line.view(np.float32)
    line[fused.FLAGS] = 0 if greedy else fused.RANDOM
    values[[fused.SCALE, fused.TOP_P, fused.REPETITION]] = LOG2_E, 1.0, 1.0
    values[fused.MIN_P] = -math.inf
    return line


def _line_of(new: NewRow, vocab_size: int) -> np.ndarray:
    """What the kernel must know of a row. A greedy row needs neither temperature nor what cuts the tail."""
    p = new.params
    line = _line(p.greedy)
    values = line.view(np.float32)
    if not p.greedy:
        values[fused.SCALE] = LOG2_E / p.temperature
        values[fused.MIN_P] = p.temperature * math.log(p.min_p) if p.min_p > 0 else -math.inf
        line[fused.TOP_K] = p.top_k if 0 < p.top_k < vocab_size else 0
        values[fused.TOP_P] = p.top_p
        line.view(np.int64)[fused.SEED // 2] = p.seed or 0
    values[[fused.PRESENCE, fused.FREQUENCY]] = p.presence_penalty, p.frequency_penalty
    values[fused.REPETITION] = p.repetition_penalty
    if p.min_tokens > 0 and new.stop_token_ids:
        line[fused.UNTIL] = min(new.num_prompt + p.min_tokens, 2**31 - 1)
    if line[fused.UNTIL] or p.presence_penalty != 0 or p.frequency_penalty != 0 or p.repetition_penalty != 1:
        line[fused.FLAGS] |= fused.ADJUSTED
    return line
