"""The plain-torch twin of every kernel that layers use: the reference, and what a CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from quire.worker.kernels.weights import AnyWeights, FloatWeights, widened

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""By the names that kernels know."""


class PlainKernels:
    """See `protocol.Kernels`."""

    name = "torch"
    wide_norms = True

    def measure_next(self) -> bool | None:
        """There is no choice."""
        return None

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One matrix product."""
        return F.linear(x, weight, bias)

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """One after the other."""
        return self.gated(self.linear(x, weight, bias), kind)

    def keep(self, weights: AnyWeights, *, gated: bool = False, experts: int = 0) -> Any:
        """As they are."""
        return weights

    def product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """The matrix for as long as it is multiplied by."""
        if isinstance(kept, FloatWeights) and kept.is_per_output and x.dtype == torch.bfloat16:
            made = (F.linear(x, widened(kept.q)).float() * kept.scales[:, 0]).to(x.dtype)
            return made if bias is None else made + bias
        return F.linear(x, kept.dense(x.dtype), bias)

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
        """Expert by expert, those that were chosen; the matrices of one at a time."""
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            inner = self.gated(self.expert_product(x[token], gate_up, expert, num), kind)
            made = self.expert_product(inner, down, expert, num)
            out.index_add_(0, token, made * weights[token, place, None])
        return out

    def expert_product(self, x: torch.Tensor, kept: tuple[Any, ...], expert: int, num: int) -> torch.Tensor:
        """x times one expert's matrices: of one matrix of all experts, or of several for each."""
        return F.linear(x, expert_matrix(kept, expert, num, x.dtype))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Statistics in float32, result in x's format."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return wide.to(x.dtype).mul_(weight)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum is a new tensor here."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def gated(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """One product of the two halves."""
        gate, up = x.chunk(2, dim=-1)
        return ACTIVATIONS[kind](gate).mul_(up)

    def route(
        self, logits: torch.Tensor, k: int, rescale: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """torch's, in float32."""
        shares, chosen = logits.softmax(-1, dtype=torch.float32).topk(k, dim=-1)
        if rescale:
            shares = shares / shares.sum(-1, keepdim=True)
        return chosen, shares.to(dtype)

    def experts(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        kind: str,
    ) -> torch.Tensor:
        """Expert by expert, those that were chosen."""
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            inner = self.gated(F.linear(x[token], gate_up[expert]), kind)
            out.index_add_(0, token, F.linear(inner, down[expert]) * weights[token, place, None])
        return out

    def most_likely(self, logits: torch.Tensor) -> torch.Tensor:
        """[rows]; the first of equal ones. On a CPU `max` is several times faster than `argmax`, most so in 16 bits."""
        return logits.max(dim=1).indices

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A look-up."""
        return F.embedding(ids, weight)

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles in float32."""
        angle = positions[:, None].float() * frequency
        return (angle.cos() * scale).to(dtype), (angle.sin() * scale).to(dtype)

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
        """Indexing."""
        done = computed[rows]
        offsets = torch.arange(len(requests), device=rows.device) - query_starts[requests]
        positions = done[requests] + offsets
        row = rows[requests]
        blocks = tables[row, positions // block_size].long()
        slots = blocks * block_size + positions % block_size
        return tokens[row, positions], positions, slots, (done + query_starts.diff()).int()


def expert_matrix(kept: tuple[Any, ...], expert: int, num: int, dtype: torch.dtype) -> torch.Tensor:
    """One expert's, of one matrix of all experts or of several for each."""
    if len(kept) == 1:
        size = kept[0].outs // num
        return kept[0].dense(dtype, expert * size, (expert + 1) * size)
    each = len(kept) // num
    return torch.cat([one.dense(dtype) for one in kept[expert * each : (expert + 1) * each]])


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the heads x [tokens, heads, head_dim] by cos, sin [tokens, head_dim / 2]."""
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    a, b = x.chunk(2, dim=-1)
    real, imaginary = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=real).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=imaginary).addcmul_(a, sin)
    return out


def split_heads(
    qkv: torch.Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim]
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
    turn: tuple[torch.Tensor, torch.Tensor] | None,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [tokens, heads, head_dim]; q and k normalised and turned. The first half of `rope.norm_turn_store`."""
    q, k, v = qkv.view(len(qkv), -1, head_dim).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if norms is not None:
        q_weight, k_weight, eps = norms
        plain = PlainKernels()
        q, k = plain.rms_norm(q, q_weight, eps), plain.rms_norm(k, k_weight, eps)
    if turn is not None:
        q, k = apply_rope(q, *turn), apply_rope(k, *turn)
    return q, k, v
