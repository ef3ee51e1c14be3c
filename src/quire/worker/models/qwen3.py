"""Qwen 3, dense (Yang et al. 2025): q and k are normalised per head; biases only where the config says so."""

from __future__ import annotations

from typing import Any

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.norm import RMSNorm
from quire.worker.layers.shape import Shape, layer_windows
from quire.worker.models.llama import LlamaForCausalLM


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Qwen 3; its head_dim is its own number, not hidden_size / heads."""

    absent = {"num_key_value_heads": 32, "head_dim": 128}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See LlamaForCausalLM."""
        return {
            **super().attention(facts, shape, build, index),
            "head_norm": lambda: RMSNorm(shape.head_dim, shape.norm_eps, build),
            "window": layer_windows(facts.config, shape.num_layers)[index],
        }
