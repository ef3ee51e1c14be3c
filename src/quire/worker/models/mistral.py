"""Mistral 7B (Jiang et al. 2023) and Mixtral (2024), which has experts in the place of MLPs."""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.experts import MixtureOfExperts, num_experts
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Rename, Rule, StackExperts
from quire.worker.models.dense import DenseCausalLM


class MistralForCausalLM(DenseCausalLM):
    """Every layer sees the last `sliding_window` positions; null is all, 4096 where the key is absent."""

    absent = {"num_key_value_heads": 8}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        absent = 4096 if not facts.config.has("sliding_window") else None
        return {"window": facts.sliding_window or absent}


class MixtralForCausalLM(DenseCausalLM):
    """Every layer has experts."""

    absent = {"num_key_value_heads": 8}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        return {"window": facts.sliding_window}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See DenseCausalLM."""
        num, k = num_experts(facts.config, 8, 2)
        return MixtureOfExperts(shape, build, num=num, k=k, width=shape.intermediate_size, rescale=True)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (Rename("block_sparse_moe", "mlp"), StackExperts("w1", "w3", "w2"), *super().weight_map())
