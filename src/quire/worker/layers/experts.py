"""Mixture of experts (Shazeer et al. 2017): of many MLPs each token goes through few, which a router chooses.

x ── router ── the k best of all, and their weights
x ── experts ── sum of weight * expert(x)            [+ sigmoid(gate(x)) * shared(x)]
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from quire.checkpoint import Fields
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.shape import Shape
from quire.worker.quantization.protocol import Shard, parameter


class Experts(nn.Module):
    """Gated MLPs, one below the other: gate_up [num * 2 * width, hidden], down [num * hidden, width]."""

    def __init__(self, hidden_size: int, num: int, width: int, activation: str, build: Build) -> None:
        super().__init__()
        self.num, self.width, self.activation = num, width, activation
        kind = {"dtype": build.dtype, "device": build.device}
        self.gate_up = parameter((num * 2 * width, hidden_size), shard=Shard(0, (width,) * (2 * num)), **kind)
        self.down = parameter((num * hidden_size, width), shard=Shard(0, (hidden_size,) * num), **kind)
        self._kernels = build.kernels

    def forward(
        self,
        x: torch.Tensor,  # [tokens, hidden]
        chosen: torch.Tensor,  # [tokens, k] which experts
        weights: torch.Tensor,  # [tokens, k] in x's format
    ) -> torch.Tensor:  # [tokens, hidden]
        gate_up = self.gate_up.view(self.num, 2 * self.width, -1)
        down = self.down.view(self.num, -1, self.width)
        return self._kernels.experts(x, gate_up, down, chosen, weights, self.activation)


class Router(nn.Module):
    """The k experts with the largest share of a softmax over all.

    Args:
        rescale: shares of the chosen sum to one.
    """

    def __init__(self, hidden_size: int, num: int, k: int, build: Build, *, rescale: bool) -> None:
        super().__init__()
        self.weight = parameter((num, hidden_size), dtype=build.dtype, device=build.device)
        self.k, self.rescale, self._kernels = k, rescale, build.kernels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [tokens, hidden] -> chosen, weights [tokens, k]."""
        return self._kernels.route(F.linear(x, self.weight), self.k, self.rescale, x.dtype)


class SharedExpert(GatedMLP):
    """An MLP that every token goes through, behind a gate of its own."""

    def __init__(self, shape: Shape, build: Build) -> None:
        super().__init__(shape, build)
        self.gate = parameter((1, shape.hidden_size), dtype=build.dtype, device=build.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, hidden] -> [tokens, hidden]
        return torch.sigmoid(F.linear(x, self.gate)) * super().forward(x)


class MixtureOfExperts(nn.Module):
    """What stands in the place of an MLP.

    Args:
        num, k: experts there are, and that a token goes through.
        width: of each.
        rescale: see Router.
        shared: the expert that all tokens go through, if there is one.
    """

    def __init__(
        self,
        shape: Shape,
        build: Build,
        *,
        num: int,
        k: int,
        width: int,
        rescale: bool,
        shared: SharedExpert | None = None,
    ) -> None:
        super().__init__()
        self.gate = Router(shape.hidden_size, num, k, build, rescale=rescale)
        self.experts = Experts(shape.hidden_size, num, width, shape.activation, build)
        self.shared_expert = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, hidden] -> [tokens, hidden]
        out = self.experts(x, *self.gate(x))
        return out if self.shared_expert is None else out + self.shared_expert(x)


def num_experts(config: Fields, num: int, k: int) -> tuple[int, int]:
    """How many there are, and through how many a token goes; `num` and `k` where the config names none."""
    key = "num_experts" if config.has("num_experts") else "num_local_experts"
    num = config.integer(key, num, high=1 << 14)
    return num, config.integer("num_experts_per_tok", k, high=num)


def sparse_mlp(
    config: Fields, shape: Shape, build: Build, index: int, *, num: int, k: int, width: int, shared_width: int = 0
) -> nn.Module:
    """What follows the attention of Qwen's layer `index`: experts in every so manieth layer, but for those named dense.

    Args:
        num, k, width, shared_width: the family's values where the config names none; 0 is no shared expert.
    """
    step = config.integer("decoder_sparse_step", 1)
    if index in config.integers("mlp_only_layers") or (index + 1) % step:
        return GatedMLP(shape, build)
    num, k = num_experts(config, num, k)
    shared = None
    if shared_width:
        shared_width = config.integer("shared_expert_intermediate_size", shared_width)
        shared = SharedExpert(replace(shape, intermediate_size=shared_width), build)
    return MixtureOfExperts(
        shape,
        build,
        num=num,
        k=k,
        width=config.integer("moe_intermediate_size", width),
        rescale=config.flag("norm_topk_prob", False),
        shared=shared,
    )
