"""Llama 2, 3, 3.1, 3.2 (Touvron et al. 2023, Dubey et al. 2024): 3.1 stretches the rope, the small 3.2 ones tie the
head to the embedding."""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.shape import Shape
from quire.worker.models.dense import DenseCausalLM


class LlamaForCausalLM(DenseCausalLM):
    """Biases on attention and MLP only where the config says so."""

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        bias = facts.config.flag("attention_bias", False)
        return {"qkv_bias": bias, "out_bias": bias}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See DenseCausalLM."""
        return GatedMLP(shape, build, bias=facts.config.flag("mlp_bias", False))
