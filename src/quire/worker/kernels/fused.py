"""The GPU's kernels: Triton, and cuBLAS where it is the faster one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from quire.worker.kernels import activation, experts, float_product, gemv, group_product, norm, rope, step
from quire.worker.kernels.choices import Choices
from quire.worker.kernels.weights import AnyWeights, FloatWeights, GroupWeights, PlainWeights


class TritonKernels:
    """See `protocol.Kernels`. Owns the choice between ours and cuBLAS's.

    Args:
        folder: where measured choices are kept.
    """

    name = "triton"
    wide_norms = True

    def __init__(self, folder: Path | None = None) -> None:
        self._choices = Choices(folder)

    def measure_next(self) -> bool | None:
        """One candidate for products of one line."""
        return self._choices.measure_next()

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """cuBLAS, or our own where x is one line and that is faster."""
        tiles = self._choices.tiles(x, weight)
        return F.linear(x, weight, bias) if tiles is None else gemv.gemv(x, weight, bias, tiles)

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """One kernel where x is one line, else two."""
        tiles = self._choices.tiles(x, weight, gated=True) if bias is None else None
        if tiles is None:
            return activation.gated(self.linear(x, weight, bias), kind)
        return gemv.gated_gemv(x, weight, kind, tiles)

    def keep(self, weights: AnyWeights, *, gated: bool = False, experts: int = 0) -> Any:
        """Groups laid out for our kernel, where their sizes allow it; other kinds as they are."""
        if isinstance(weights, GroupWeights) and group_product.block_of(weights):
            return group_product.tile(weights)
        return weights

    def product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """Our own for few rows; cuBLAS on the matrix made for it above, and for kinds without a kernel."""
        lines = x.reshape(-1, x.shape[-1])
        if isinstance(kept, group_product.TiledGroups):
            made = group_product.product(lines, kept, bias)
        elif isinstance(kept, FloatWeights) and float_product.block_of(kept):
            made = float_product.product(lines, kept, bias)
        elif isinstance(kept, PlainWeights):
            made = self.linear(lines, kept.q, bias)
        else:
            made = F.linear(lines, kept.dense(x.dtype), bias)
        return made.view(*x.shape[:-1], made.shape[-1])

    def gated_product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """One after the other."""
        return self.gated(self.product(x, kept, bias), kind)

    def kept_experts(
        self,
        x: torch.Tensor,
        gate_up: tuple[Any, ...],
        down: tuple[Any, ...],
        chosen: torch.Tensor,
        weights: torch.Tensor,
        kind: str,
        num: int,
    ) -> torch.Tensor:
        """All experts of one layer in 16 bits, for as long as the grouped products take: nothing depends on values."""
        matrices = (torch.cat([one.dense(x.dtype) for one in kept]) for kept in (gate_up, down))
        first, second = (matrix.view(num, -1, matrix.shape[1]) for matrix in matrices)
        return experts.experts(x, first, second, chosen, weights, kind)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """One program per line."""
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum takes the place of `residual`."""
        return norm.add_rms_norm(x, residual, weight, eps)

    def gated(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """One pass."""
        return activation.gated(x, kind)

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """torch's."""
        return F.embedding(ids, weight)

    def route(
        self, logits: torch.Tensor, k: int, rescale: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One kernel."""
        return experts.route(logits, k, rescale, dtype)

    def experts(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        kind: str,
    ) -> torch.Tensor:
        """Tokens sorted by expert, two grouped products."""
        return experts.experts(x, gate_up, down, chosen, weights, kind)

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass."""
        return rope.turns(positions, frequency, scale, dtype)

    def gather(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        requests: torch.Tensor,
        computed: torch.Tensor,
        tokens: torch.Tensor,
        tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One pass."""
        return step.gather(rows, query_starts, requests, computed, tokens, tables, block_size)
