"""Mixture of experts (Shazeer et al. 2017): of many MLPs each token goes through few, which a router chooses.

x ── router ── the k best of all, and their weights
x ── experts ── sum of weight * expert(x)            [+ sigmoid(gate(x)) * shared(x)]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quire.checkpoint import Fields
from quire.worker.kernels.weights import PlainWeights
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.shape import Shape
from quire.worker.quantization.protocol import Scheme, Shard, parameter
from quire.worker.quantization.stored import Later


class ExpertStack(nn.Module):
    """One matrix of every expert, or two, one below the other: `weight`, or what a scheme of quantization makes of it.

    Args:
        num: experts.
        out_parts: outputs of the matrices of one.
    """

    has_bias = is_gated = False
    order = None

    def __init__(self, in_features: int, num: int, out_parts: tuple[int, ...], build: Build) -> None:
        super().__init__()
        self.in_features, self.num, self.out_parts = in_features, num, out_parts * num
        self.dtype, self.device, self.kernels = build.dtype, build.device, build.kernels
        self.weight: nn.Parameter | None = None
        self.kept: tuple[Any, ...] = ()
        self._scheme: Scheme | None = None
        self.is_settled = False
        if not isinstance(build.scheme, Later):
            self.settle(None)

    def settle(self, scheme: Scheme | None) -> None:
        """Take this scheme, or none; before anything is loaded."""
        self._scheme, self.is_settled = scheme, True
        if scheme is not None:
            scheme.params(self)
            return
        shape, kind = (sum(self.out_parts), self.in_features), {"dtype": self.dtype, "device": self.device}
        self.weight = parameter(shape, shard=Shard(0, self.out_parts), **kind)

    def finish(self) -> None:
        """Called by the loader when all experts are read."""
        if self._scheme is not None:
            self._scheme.finish(self)

    def plain(self) -> torch.Tensor:
        """[num, outs, in] of one that is not quantized."""
        assert self.weight is not None
        return self.weight.view(self.num, -1, self.in_features)


class Experts(nn.Module):
    """Gated MLPs, one below the other: gate_up [num * 2 * width, hidden], down [num * hidden, width]."""

    def __init__(self, hidden_size: int, num: int, width: int, activation: str, build: Build) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = ExpertStack(hidden_size, num, (width, width), build)
        self.down = ExpertStack(width, num, (hidden_size,), build)
        self._kernels = build.kernels

    def forward(
        self,
        x: torch.Tensor,  # [tokens, hidden]
        chosen: torch.Tensor,  # [tokens, k] which experts
        weights: torch.Tensor,  # [tokens, k] in x's format
    ) -> torch.Tensor:  # [tokens, hidden]
        if self.gate_up.weight is None or self.down.weight is None:
            gate_up, down = (stack.kept or (PlainWeights(stack.weight),) for stack in (self.gate_up, self.down))
            return self._kernels.kept_experts(x, gate_up, down, chosen, weights, self.activation, self.gate_up.num)
        plain = (self.gate_up.plain(), self.down.plain())
        return self._kernels.experts(x, *plain, chosen, weights, self.activation)


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
