"""Qwen 2 and 2.5 (Yang et al. 2024): q, k and v have a bias; deep layers may have a window. And Qwen 2 MoE, whose
tokens go through chosen experts and a shared one."""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.experts import sparse_mlp
from quire.worker.layers.shape import Shape, layer_windows
from quire.worker.loading.names import Rename, Rule, StackExperts
from quire.worker.models.dense import DenseCausalLM


class Qwen2ForCausalLM(DenseCausalLM):
    """Qwen 2."""

    absent = {"num_key_value_heads": 32}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        return {"qkv_bias": True, "window": layer_windows(facts.config, shape.num_layers)[index]}


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    """Qwen 2 MoE."""

    absent = {"num_key_value_heads": 16}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        return super().attention(facts, shape, build, index) | {"qkv_bias": facts.config.flag("qkv_bias", True)}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See DenseCausalLM."""
        return sparse_mlp(facts.config, shape, build, index, num=60, k=4, width=1408, shared_width=5632)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            StackExperts("gate_proj", "up_proj", "down_proj"),
            Rename("shared_expert_gate.weight", "shared_expert.gate"),
            *super().weight_map(),
        )
