"""Qwen 3 (Yang et al. 2025): q and k are normalised per head; dense, and with experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.experts import sparse_mlp
from quire.worker.layers.norm import RMSNorm
from quire.worker.layers.shape import Shape, layer_windows
from quire.worker.loading.names import Rule, StackExperts
from quire.worker.models.dense import DenseCausalLM


class Qwen3ForCausalLM(DenseCausalLM):
    """Its head_dim is its own number, not hidden_size / heads; biases only where the config says so."""

    absent = {"num_key_value_heads": 32, "head_dim": 128}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        bias = facts.config.flag("attention_bias", False)
        return {
            "qkv_bias": bias,
            "out_bias": bias,
            "head_norm": lambda: RMSNorm(shape.head_dim, shape.norm_eps, build),
            "window": layer_windows(facts.config, shape.num_layers)[index],
        }


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Qwen 3 MoE."""

    absent = {"num_key_value_heads": 4, "head_dim": 128}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See DenseCausalLM."""
        return sparse_mlp(facts.config, shape, build, index, num=128, k=8, width=768)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (StackExperts("gate_proj", "up_proj", "down_proj"), *super().weight_map())
