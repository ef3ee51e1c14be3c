"""Drive a model by hand over a paged cache full of NaN: what the runner does, without rows, plans or sampling."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quire.checkpoint import read_facts
from quire.config import ModelConfig
from quire.worker.attention.protocol import AttentionBackend, KVSpec
from quire.worker.attention.select import select_backend
from quire.worker.batch import Batch
from quire.worker.kernels.protocol import Kernels
from quire.worker.kernels.select import kernels_for
from quire.worker.layers.build import Build
from quire.worker.models.load import load_model
from quire.worker.quantization.none import Unquantized
from quire.worker.quantization.protocol import Scheme


@dataclass
class Sequence:
    """Tokens known, blocks held, tokens computed."""

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0


class Pages:
    """A pool of blocks in random order; block 0 is the null block. Unwritten memory is NaN."""

    def __init__(
        self,
        backend: AttentionBackend,
        specs: tuple[KVSpec, ...],
        num_blocks: int,
        block_size: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.backend = backend
        self.block_size = block_size
        self.free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self.free)
        self.device = torch.device(device)
        shapes = [(backend.kv_shape(spec, num_blocks, block_size), spec.dtype) for spec in specs]
        self.kv = tuple(torch.full(shape, torch.nan, dtype=dtype, device=self.device) for shape, dtype in shapes)

    def batch(self, work: list[tuple[Sequence, int]], slack: int = 0) -> Batch:
        """A step: so many new tokens of each sequence. `slack` makes the host's bounds larger than the truth."""
        size = self.block_size
        ids, positions, slots, counts, lens = [], [], [], [], []
        for sequence, count in work:
            end = sequence.computed + count
            while len(sequence.blocks) * size < end:
                sequence.blocks.append(self.free.pop())
            span = range(sequence.computed, end)
            ids += [sequence.tokens[p] for p in span]
            positions += span
            slots += [sequence.blocks[p // size] * size + p % size for p in span]
            counts.append(count)
            lens.append(end)
            sequence.computed = end
        bounds = tuple(n + (slack if n > c else 0) for n, c in zip(lens, counts, strict=True))
        width = -(-max(bounds) // size)
        tables = [(s.blocks + [0] * width)[:width] for s, _ in work]
        starts = list(accumulate(counts, initial=0))
        batch = Batch(
            input_ids=self.on_device(ids),
            positions=self.on_device(positions),
            slots=self.on_device(slots),
            rows=self.on_device(range(len(work))),
            query_starts=self.on_device(starts).int(),
            kv_lens=self.on_device(lens).int(),
            block_tables=self.on_device(tables).int(),
            logits_index=self.on_device(starts[1:]) - 1,
            kv=self.kv,
            block_size=size,
            counts=tuple(counts),
            kv_bounds=bounds,
        )
        return replace(batch, attention_plan=self.backend.plan(batch))

    def on_device(self, numbers: Any) -> torch.Tensor:
        """int64 on the pages' device."""
        return torch.tensor(numbers if isinstance(numbers, list) else list(numbers)).to(self.device)


class Driver:
    """A loaded checkpoint and its pages."""

    def __init__(
        self,
        folder: Path,
        *,
        backend: AttentionBackend | None = None,
        dtype: torch.dtype = torch.float32,
        num_blocks: int = 400,
        block_size: int = 16,
        load_format: Any = "auto",
        impl: Any = "auto",
        device: str = "cpu",
        scheme: Scheme | None = None,
        kernels: Kernels | None = None,
        quantization: Any = None,
    ) -> None:
        backend = backend or select_backend(torch.device(device))
        build = Build(
            dtype=dtype,
            device=torch.device(device),
            backend=backend,
            scheme=scheme or Unquantized(),
            kernels=kernels or kernels_for(torch.device(device)),
        )
        config = ModelConfig(model=str(folder), load_format=load_format, model_impl=impl, quantization=quantization)
        self.model: nn.Module = load_model(folder, read_facts(folder), build, config)
        self.pages = Pages(backend, self.model.kv_specs(), num_blocks, block_size, device=device)

    @torch.inference_mode()
    def step(self, work: list[tuple[Sequence, int]]) -> list[torch.Tensor]:
        """Logits [count, vocab] of each sequence's new tokens."""
        batch = self.pages.batch(work)
        return list(self.model.logits(self.model(batch)).float().split(list(batch.counts)))

    def greedy(self, prompts: list[list[int]], steps: int) -> list[list[int]]:
        """Continue all prompts together, most likely token each time."""
        sequences = [Sequence(list(prompt)) for prompt in prompts]
        for _ in range(steps):
            logits = self.step([(s, len(s.tokens) - s.computed) for s in sequences])
            for sequence, rows in zip(sequences, logits, strict=True):
                sequence.tokens.append(int(rows[-1].argmax()))
        return [s.tokens[len(p) :] for s, p in zip(sequences, prompts, strict=True)]
